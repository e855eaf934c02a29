//! Tensor maps that a kernel makes: `tensormap.replace` of every field, in shared and in global memory, against what the
//! encoder makes of the same values.

use crate::emulator::{Bench, Call};
use cuda_emulator::{
    Device, Fault, FaultKind, Options, Program, Schedule, TENSOR_MAP_BYTES, TensorMap, TensorType,
};

fn map(address: u64) -> TensorMap {
    TensorMap {
        element: TensorType::Bf16,
        address,
        dims: vec![64, 20, 3, 7, 5],
        strides: vec![128, 2560, 7680, 53_760],
        boxes: vec![32, 4, 1, 2, 3],
        steps: vec![1, 2, 1, 3, 1],
        swizzle: 64,
        nan_fill: true,
    }
}

/// The instructions that give the map at `place` all the values of `map`; the address is in `%address`.
fn replacements(map: &TensorMap, space: &str, place: &str) -> String {
    let one = |field: &str, kind: &str, values: String| {
        format!("tensormap.replace.tile.{field}{space}.b1024.{kind} [{place}], {values};\n")
    };
    let each = |field: &str, kind: &str, values: Vec<u64>| -> String {
        let values = values.into_iter().enumerate();
        values
            .map(|(at, value)| one(field, kind, format!("{at}, {value}")))
            .collect()
    };
    let wide = |values: &[u32]| values.iter().map(|&value| value.into()).collect();
    let number = match map.element {
        TensorType::F32Ftz => 8,
        TensorType::F64 => 9,
        TensorType::Bf16 => 10,
        other => other as u32,
    };
    [
        one("global_address", "b64", "%address".into()),
        one("rank", "b32", (map.dims.len() - 1).to_string()),
        each("box_dim", "b32", wide(&map.boxes)),
        each("global_dim", "b32", map.dims.clone()),
        each("global_stride", "b64", map.strides.clone()),
        each("element_stride", "b32", wide(&map.steps)),
        one("elemtype", "b32", number.to_string()),
        one("interleave_layout", "b32", "0".into()),
        one(
            "swizzle_mode",
            "b32",
            (map.swizzle / 32).ilog2().wrapping_add(1).to_string(),
        ),
        one("fill_mode", "b32", u32::from(map.nan_fill).to_string()),
    ]
    .concat()
}

/// A kernel `case(to, from, address)`: thread 0 takes 128 bytes from `from` to a tile, runs `body` on it at `%tile`, and
/// the warp copies it to `to`.
fn kernel(body: &str) -> String {
    let carry: String = (0..TENSOR_MAP_BYTES)
        .step_by(16)
        .map(|at| {
            format!(
                "@%first ld.global.v2.b64 {{%x, %y}}, [%from+{at}];\n@%first st.shared.v2.b64 [%tile+{at}], {{%x, %y}};\n"
            )
        })
        .collect();
    format!(
        ".version 8.3\n.target sm_90a\n.address_size 64\n\
         .visible .entry case(.param .u64 to, .param .u64 from, .param .u64 address)\n{{\n\
         .reg .b32 %tile, %t;\n.reg .b64 %to, %from, %address, %x, %y;\n.reg .pred %first;\n\
         .shared .align 128 .b8 tile[128];\n\
         ld.param.u64 %to, [to];\nld.param.u64 %from, [from];\nld.param.u64 %address, [address];\n\
         mov.u32 %t, %tid.x;\nsetp.eq.u32 %first, %t, 0;\nmov.u32 %tile, tile;\n{carry}\
         @!%first bra copy;\n{body}copy:\nbar.warp.sync 0xffffffff;\n\
         tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%to], [%tile], 128;\n\
         fence.proxy.tensormap::generic.acquire.gpu [%to], 128;\nret;\n}}\n"
    )
}

/// Runs `body` on a copy of `from`: the 128 bytes that come out.
fn run(body: &str, from: &[u8], address: u64) -> Result<Vec<u8>, Fault> {
    let bench = Bench::load(&kernel(body)).unwrap();
    let to = bench.buffer(&[0xee; TENSOR_MAP_BYTES]);
    for schedule in [Schedule::LowestPc, Schedule::Adversarial(1)] {
        let call = Call {
            device: Device::sm_90(),
            options: Options {
                threads: 1,
                schedule,
                ..Options::default()
            },
            ..Call::new(&[to, bench.buffer(from), address])
        };
        bench.run(&call)?;
    }
    Ok(bench.read(to, TENSOR_MAP_BYTES))
}

#[test]
fn a_map_made_of_zeros_is_what_the_encoder_makes() {
    for (element, swizzle, nan_fill) in [
        (TensorType::Bf16, 64, true),
        (TensorType::U8, 32, false),
        (TensorType::F32Ftz, 128, true),
        (TensorType::Tf32Ftz, 128, false),
    ] {
        let map = TensorMap {
            element,
            swizzle,
            nan_fill,
            ..map(1 << 40)
        };
        let made = run(
            &replacements(&map, ".shared::cta", "%tile"),
            &[0; 128],
            1 << 40,
        );
        assert_eq!(made.unwrap(), map.encode().unwrap(), "{element:?}");
    }
}

#[test]
fn a_field_of_an_encoded_map_changes_alone() {
    let old = map(1 << 40);
    let new = TensorMap {
        dims: vec![64, 20, 9, 7, 5],
        address: 1 << 41,
        ..old.clone()
    };
    let body = "tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%tile], %address;\n\
                tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%tile], 2, 9;\n";
    let made = run(body, &old.encode().unwrap(), 1 << 41);
    assert_eq!(made.unwrap(), new.encode().unwrap());
}

#[test]
fn maps_in_global_memory_and_at_generic_addresses_change_too() {
    let (old, new) = (map(1 << 40), map(1 << 41));
    for space in [".global", ""] {
        let body = replacements(&new, space, "%from");
        let text = kernel(&body);
        let bench = Bench::load(&text).unwrap();
        let from = bench.buffer(&old.encode().unwrap());
        let to = bench.buffer(&[0; TENSOR_MAP_BYTES]);
        let call = Call {
            device: Device::sm_90(),
            ..Call::new(&[to, from, 1 << 41])
        };
        bench.run(&call).unwrap();
        assert_eq!(bench.read(from, TENSOR_MAP_BYTES), new.encode().unwrap());
    }
}

#[test]
fn values_that_no_map_has_are_faults() {
    let encoded = map(1 << 40).encode().unwrap();
    let mut changed = encoded;
    changed[40] ^= 1;
    for (body, from, words) in [
        (
            "rank.shared::cta.b1024.b32 [%tile], 5;",
            encoded,
            "a rank of 5 and one",
        ),
        (
            "global_dim.shared::cta.b1024.b32 [%tile], 1, 0;",
            encoded,
            "size 0 of dimension 1",
        ),
        (
            "box_dim.shared::cta.b1024.b32 [%tile], 0, 65536;",
            encoded,
            "a box spans 1 to 256",
        ),
        (
            "element_stride.shared::cta.b1024.b32 [%tile], 4, 256;",
            encoded,
            "it is 1 to 8",
        ),
        (
            "rank.shared::cta.b1024.b32 [%tile], 1;",
            changed,
            "are no tensor map",
        ),
    ] {
        let fault = run(&format!("tensormap.replace.tile.{body}\n"), &from, 0).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Trap, "{fault}");
        assert!(fault.message.contains(words), "{fault}");
        let site = fault.site.unwrap();
        assert!(site.instruction.contains("tensormap.replace"), "{site}");
    }
}

#[test]
fn fields_that_are_not_emulated_are_named_at_load() {
    for (body, words) in [
        (
            "elemtype.shared::cta.b1024.b32 [%tile], 13;",
            "the elemtype 13 of a tensor map",
        ),
        (
            "swizzle_mode.shared::cta.b1024.b32 [%tile], 4;",
            "the swizzle_mode 4",
        ),
        (
            "interleave_layout.shared::cta.b1024.b32 [%tile], 1;",
            "the interleave_layout 1",
        ),
        (
            "swizzle_atomicity.shared::cta.b1024.b32 [%tile], 1;",
            "the swizzle_atomicity 1",
        ),
        (
            "fill_mode.shared::cta.b1024.b32 [%tile], %t;",
            "takes a number",
        ),
        (
            "box_dim.shared::cta.b1024.b32 [%tile], 5, 1;",
            "a dimension from 0 to 4",
        ),
        (
            "global_stride.shared::cta.b1024.b64 [%tile], 4, 16;",
            "a dimension from 0 to 3",
        ),
        ("rank.local.b1024.b32 [%tile], 1;", "is not emulated"),
    ] {
        let text = kernel(&format!("tensormap.replace.tile.{body}\n"));
        let error = Program::parse(&text).unwrap_err().to_string();
        assert!(error.contains(words), "`{error}` lacks `{words}`");
    }
}
