//! What lanes of a warp tell each other: shfl, vote, match and redux, of whole warps and of groups that name themselves.

use super::number;
use crate::form::Form;

const LANES: usize = 32;

pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    shuffles(&mut forms);
    votes(&mut forms);
    matches(&mut forms);
    reductions(&mut forms);
    forms
}

/// How a warp is cut into groups that each name their members, and the mask of a lane's group.
type Group = (&'static str, fn(usize) -> u32);

const GROUPS: [Group; 3] = [
    ("warp", |_| u32::MAX),
    (
        "halves",
        |lane| if lane < 16 { 0xffff } else { 0xffff_0000 },
    ),
    // lanes 0, 3, 6, … and so on
    ("thirds", |lane| {
        (0..32)
            .filter(|at| at % 3 == lane % 3)
            .fold(0, |mask, at| mask | 1 << at)
    }),
];

/// Runs `instruction` with the members of each group in `%members`, each group in turn: a mask may not differ among
/// lanes that run together.
fn grouped(group: &str, f: fn(usize) -> u32, instruction: &str) -> String {
    let mut text =
        ".reg .b32 %members, %lane;\n.reg .pred %mine;\nmov.u32 %lane, %laneid;\n".to_string();
    if group == "warp" {
        return text + "mov.u32 %members, 0xffffffff;\n" + instruction;
    }
    let mut masks: Vec<u32> = (0..LANES).map(f).collect();
    masks.sort_unstable();
    masks.dedup();
    for (at, mask) in masks.iter().enumerate() {
        text += &format!(
            "shr.u32 %members, {mask:#x}, %lane;\nand.b32 %members, %members, 1;\n\
             setp.eq.u32 %mine, %members, 0;\nmov.u32 %members, {mask:#x};\n\
             @%mine bra after{at};\n{instruction}\nafter{at}:\n"
        );
    }
    text
}

/// The lanes of a mask.
fn members(mask: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |lane| mask >> lane & 1 != 0)
}

fn shuffles(forms: &mut Vec<Form>) {
    for mode in ["up", "down", "bfly", "idx"] {
        // segments of 32, 8 and 4 lanes; `up` takes a lower bound
        for (width, segment) in [(32, 0), (8, 0x1800), (4, 0x1c00)] {
            let clamp = segment | if mode == "up" { 0 } else { 31 };
            let name = format!("shfl.sync.{mode}.b32 of {width}");
            let body = format!(
                ".reg .pred %p;\nshfl.sync.{mode}.b32 %o0|%p, %i0, %i1, {clamp:#x}, 0xffffffff;\n\
                 selp.u32 %o1, 1, 0, %p;"
            );
            let form = Form::warps(name, ("u32 u32", "u32 u32"), 64, body, move |data| {
                let (mut values, mut inside) = (Vec::new(), Vec::new());
                for thread in 0..data[0].len() {
                    let (base, lane) = (thread / LANES * LANES, thread % LANES);
                    let (start, by) = (lane / width * width, data[1][thread] as usize % 32);
                    let from = match mode {
                        "up" => lane.checked_sub(by).filter(|&from| from >= start),
                        "down" => Some(lane + by).filter(|&from| from < start + width),
                        // the other lane may lie in a segment before this one
                        "bfly" => Some(lane ^ by).filter(|&from| from < start + width),
                        _ => Some(start + by % width),
                    };
                    values.push(Some(data[0][base + from.unwrap_or(lane)]));
                    inside.push(Some(from.is_some().into()));
                }
                vec![values, inside]
            });
            forms.push(form);
        }
    }
}

fn votes(forms: &mut Vec<Form>) {
    for (group, f) in GROUPS {
        for (mode, divisor) in [
            ("all", 1),
            ("all", 7),
            ("any", 29),
            ("uni", 1),
            ("uni", 2),
            ("ballot", 3),
        ] {
            for not in ["", "!"] {
                let (kind, out) = match mode {
                    "ballot" => ("b32", "%o0"),
                    _ => ("pred", "%p"),
                };
                let instruction = format!("vote.sync.{mode}.{kind} {out}, {not}%q, %members;");
                // the predicate: whether the number is a multiple
                let before = format!(
                    ".reg .pred %p, %q;\n.reg .b32 %rest;\nrem.u32 %rest, %i0, {divisor};\n\
                     setp.eq.u32 %q, %rest, 0;\n"
                );
                let after = match mode {
                    "ballot" => "",
                    _ => "\nselp.u32 %o0, 1, 0, %p;",
                };
                let body = before + &grouped(group, f, &instruction) + after;
                let name = format!("vote.sync.{mode}.{kind} {not}{divisor} of {group}");
                forms.push(Form::warps(name, ("u32", "u32"), 64, body, move |data| {
                    let holds = |thread: usize| (data[0][thread] % divisor == 0) != (not == "!");
                    let one = |thread: usize| {
                        let base = thread / LANES * LANES;
                        let mask = f(thread % LANES);
                        let votes: Vec<bool> =
                            members(mask).map(|lane| holds(base + lane)).collect();
                        match mode {
                            "all" => votes.iter().all(|&vote| vote).into(),
                            "any" => votes.iter().any(|&vote| vote).into(),
                            "uni" => votes.iter().all(|&vote| vote == votes[0]).into(),
                            _ => members(mask)
                                .filter(|&lane| holds(base + lane))
                                .fold(0, |out, lane| out | 1u64 << lane),
                        }
                    };
                    vec![(0..data[0].len()).map(|thread| Some(one(thread))).collect()]
                }));
            }
        }
    }
}

fn matches(forms: &mut Vec<Form>) {
    for (group, f) in GROUPS {
        for bits in [32, 64] {
            for all in [false, true] {
                let kind = format!("u{bits}");
                let (mode, out) = if all {
                    ("all", "%o0|%p")
                } else {
                    ("any", "%o0")
                };
                // in the second warp all numbers are the same
                let instruction = format!("match.{mode}.sync.b{bits} {out}, %value, %members;");
                let before = format!(
                    ".reg .pred %p, %second;\n.reg .b{bits} %value;\nsetp.ge.u32 %second, %thread, 32;\n\
                     and.b{bits} %value, %i0, 3;\nselp.b{bits} %value, 7, %value, %second;\n\
                     setp.ne.u32 %p, 0, 0;\n"
                );
                let after = "\nselp.u32 %o1, 1, 0, %p;";
                let body = before + &grouped(group, f, &instruction) + after;
                let name = format!("match.{mode}.sync.b{bits} of {group}");
                forms.push(Form::warps(
                    name,
                    (&kind, "u32 u32"),
                    64,
                    body,
                    move |data| {
                        let value = |thread: usize| match thread {
                            0..LANES => data[0][thread] & 3,
                            _ => 7,
                        };
                        let (mut masks, mut agree) = (Vec::new(), Vec::new());
                        for thread in 0..data[0].len() {
                            let base = thread / LANES * LANES;
                            let mask = f(thread % LANES);
                            let same = members(mask)
                                .filter(|&lane| value(base + lane) == value(thread))
                                .fold(0, |out, lane| out | 1u32 << lane);
                            let every = same == mask;
                            let found = if all && !every { 0 } else { same };
                            masks.push(Some(found.into()));
                            agree.push(Some((all && every).into()));
                        }
                        vec![masks, agree]
                    },
                ));
            }
        }
    }
}

fn reductions(forms: &mut Vec<Form>) {
    type Fold = fn(i128, i128) -> i128;
    let operations: [(&str, &str, bool, Fold); 9] = [
        ("add", "u32", false, |x, y| x + y),
        ("add", "s32", true, |x, y| x + y),
        ("min", "u32", false, i128::min),
        ("min", "s32", true, i128::min),
        ("max", "u32", false, i128::max),
        ("max", "s32", true, i128::max),
        ("and", "b32", false, |x, y| x & y),
        ("or", "b32", false, |x, y| x | y),
        ("xor", "b32", false, |x, y| x ^ y),
    ];
    for (group, f) in GROUPS {
        for (op, kind, signed, fold) in operations {
            let instruction = format!("redux.sync.{op}.{kind} %o0, %i0, %members;");
            let body = grouped(group, f, &instruction);
            let name = format!("redux.sync.{op}.{kind} of {group}");
            forms.push(Form::warps(name, ("u32", "u32"), 64, body, move |data| {
                let one = |thread: usize| {
                    let base = thread / LANES * LANES;
                    members(f(thread % LANES))
                        .map(|lane| number(data[0][base + lane], 32, signed))
                        .reduce(fold)
                        .map(|value| value as u64)
                };
                vec![(0..data[0].len()).map(one).collect()]
            }));
        }
    }
}
