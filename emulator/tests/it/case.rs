//! The comments at the top of a PTX file that say how to launch it and what to expect.
//!
//! Words that start with `@` are settings ([`Settings`]); other text is for the reader. A table has a line of columns,
//! then a line a thread:
//! ```text
//! // a:u32      n:u32 -> shl:u32
//! // 1          31    -> 0x80000000
//! // 2* 1       32    -> 0
//! ```
//! `2*` stands for two such threads; a table shorter than the launch starts over. Numbers are decimal, or the bits in
//! hexadecimal; `?` expects nothing. A column `sin:f32~abs2^-20.5` may be off by that much; `~2ulp` and `~rel2^-22` are
//! the other forms.
//!
//! The kernel is `case(out, in)`. Each thread has a slot of 8 bytes in every column: column c of thread t lies at byte
//! `8 * (c * threads + t)` of its buffer, with the value in the low bytes. Threads are numbered through the grid, x first.

use super::value::{Tolerance, Type};

/// What `@` words say; the default of each is in [`Settings::default`].
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// `@grid x [y [z]]`
    pub(crate) grid: [u32; 3],
    /// `@block x [y [z]]`
    pub(crate) block: [u32; 3],
    /// `@dynamic n`: bytes of dynamic shared memory.
    pub(crate) dynamic: u32,
    /// `@in n`, or `@in freed`: bytes of the buffer `in` in a fail case, which hold the numbers of its words.
    pub(crate) input: Option<usize>,
    /// `@out n`: bytes of the buffer `out` in a fail case, which nobody wrote.
    pub(crate) output: usize,
    /// `@instructions n`: after how many a launch counts as hung.
    pub(crate) instructions: Option<u64>,
    /// `@fault kind`: the [`cuda_emulator::FaultKind`] by its variant, or `load` for a module that must not load.
    pub(crate) fault: Option<String>,
    /// `@says text`: words of the message; may stand several times.
    pub(crate) says: Vec<String>,
    /// `@only lowest` or `@only adversarial`: the one schedule that meets the fault.
    pub(crate) only: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            grid: [1; 3],
            block: [32, 1, 1],
            dynamic: 0,
            input: Some(4096),
            output: 4096,
            instructions: None,
            fault: None,
            says: Vec::new(),
            only: None,
        }
    }
}

/// A column of a table.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: Type,
    pub(crate) tolerance: Tolerance,
}

/// A line of a table: input bits, and expected bits where something is expected.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) text: String,
    pub(crate) inputs: Vec<u64>,
    pub(crate) outputs: Vec<Option<u64>>,
}

/// A PTX file with what its comments say.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) ptx: String,
    /// As 80: from `.target`.
    pub(crate) arch: u32,
    pub(crate) settings: Settings,
    pub(crate) inputs: Vec<Column>,
    pub(crate) outputs: Vec<Column>,
    pub(crate) rows: Vec<Row>,
}

impl Case {
    /// Reads all cases of a folder beside this one, in the order of their names.
    pub(crate) fn folder(name: &str) -> Vec<Case> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests")
            .join(name);
        let entries =
            std::fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "ptx"));
        files.sort();
        let case = |file: &std::path::PathBuf| {
            let text = std::fs::read_to_string(file).unwrap();
            let name = file.file_stem().unwrap().to_string_lossy();
            Case::parse(&name, &text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        };
        files.iter().map(case).collect()
    }

    /// Reads the comments of a PTX text.
    pub(crate) fn parse(name: &str, ptx: &str) -> Result<Case, String> {
        let target = ptx
            .lines()
            .find_map(|line| line.strip_prefix(".target sm_"))
            .ok_or("no .target")?;
        let arch = target
            .trim()
            .trim_end_matches('a')
            .parse()
            .map_err(|_| format!("the target sm_{target}"))?;
        let mut case = Case {
            name: name.into(),
            ptx: ptx.into(),
            arch,
            settings: Settings::default(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            rows: Vec::new(),
        };
        for (at, line) in ptx.lines().enumerate() {
            let Some(comment) = line.strip_prefix("//") else {
                break;
            };
            case.line(comment.trim())
                .map_err(|error| format!("line {}: {error}", at + 1))?;
        }
        Ok(case)
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        if let Some(setting) = line.strip_prefix('@') {
            let (word, value) = setting.split_once(' ').unwrap_or((setting, ""));
            return self.settings.set(word, value.trim());
        }
        let Some((left, right)) = line.split_once("->") else {
            return Ok(());
        };
        if self.outputs.is_empty() {
            self.inputs = left
                .split_whitespace()
                .map(column)
                .collect::<Result<_, _>>()?;
            self.outputs = right
                .split_whitespace()
                .map(column)
                .collect::<Result<_, _>>()?;
            return Ok(());
        }
        let (times, left) = match left.split_once('*') {
            Some((times, left)) => (
                times.trim().parse().map_err(|_| format!("`{times}*`"))?,
                left,
            ),
            None => (1, left),
        };
        let values = |columns: &[Column], text: &str| -> Result<Vec<Option<u64>>, String> {
            let words: Vec<_> = text.split_whitespace().collect();
            if words.len() != columns.len() {
                return Err(format!(
                    "{} values for {} columns",
                    words.len(),
                    columns.len()
                ));
            }
            let value = |(column, word): (&Column, &&str)| match *word {
                "?" => Ok(None),
                word => column
                    .kind
                    .parse(word)
                    .map(Some)
                    .ok_or(format!("`{word}` is no value of {}", column.name)),
            };
            columns.iter().zip(&words).map(value).collect()
        };
        let inputs = values(&self.inputs, left)?
            .into_iter()
            .collect::<Option<_>>()
            .ok_or("`?` as an input")?;
        let row = Row {
            text: line.into(),
            inputs,
            outputs: values(&self.outputs, right)?,
        };
        self.rows.extend(std::iter::repeat_n(row, times));
        Ok(())
    }

    /// Threads of the whole launch.
    pub(crate) fn threads(&self) -> usize {
        self.settings
            .grid
            .iter()
            .chain(&self.settings.block)
            .product::<u32>() as usize
    }

    /// The table's inputs as the kernel reads them.
    pub(crate) fn input_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for column in 0..self.inputs.len() {
            for thread in 0..self.threads() {
                let row = &self.rows[thread % self.rows.len()];
                bytes.extend(row.inputs[column].to_le_bytes());
            }
        }
        bytes
    }

    /// Bytes of the table's outputs.
    pub(crate) fn output_size(&self) -> usize {
        8 * self.threads() * self.outputs.len()
    }

    /// Compares what a device wrote with the table; the words for each difference.
    pub(crate) fn differences(&self, out: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        for thread in 0..self.threads() {
            let row = &self.rows[thread % self.rows.len()];
            for (at, column) in self.outputs.iter().enumerate() {
                let Some(expected) = row.outputs[at] else {
                    continue;
                };
                let start = 8 * (at * self.threads() + thread);
                let mut bytes = [0; 8];
                bytes[..column.kind.bytes()]
                    .copy_from_slice(&out[start..start + column.kind.bytes()]);
                let value = u64::from_le_bytes(bytes);
                if !column.tolerance.accepts(column.kind, expected, value) {
                    let (wanted, value) = (column.kind.show(expected), column.kind.show(value));
                    found.push(format!(
                        "thread {thread}, {}: {value} is not {wanted} [{}]",
                        column.name, row.text
                    ));
                }
            }
        }
        found
    }

    /// The lines whose comment ends with `mark`, from 1.
    pub(crate) fn marked(&self, mark: &str) -> Vec<u32> {
        let lines = self.ptx.lines().enumerate();
        lines
            .filter(|(_, line)| line.trim_end().ends_with(mark))
            .map(|(at, _)| at as u32 + 1)
            .collect()
    }
}

impl Settings {
    fn set(&mut self, word: &str, value: &str) -> Result<(), String> {
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("`@{word} {value}`: a number is missing"))
        };
        match word {
            "grid" => self.grid = extent(value)?,
            "block" => self.block = extent(value)?,
            "dynamic" => self.dynamic = number()? as u32,
            "in" if value == "freed" => self.input = None,
            "in" => self.input = Some(number()? as usize),
            "out" => self.output = number()? as usize,
            "instructions" => self.instructions = Some(number()?),
            "fault" => self.fault = Some(value.into()),
            "says" => self.says.push(value.into()),
            "only" if matches!(value, "lowest" | "adversarial") => self.only = Some(value.into()),
            _ => return Err(format!("`@{word} {value}` is no setting")),
        }
        Ok(())
    }
}

fn extent(text: &str) -> Result<[u32; 3], String> {
    let mut out = [1; 3];
    for (at, word) in text.split_whitespace().enumerate() {
        let place = out
            .get_mut(at)
            .ok_or(format!("`{text}` has more than three sides"))?;
        *place = word.parse().map_err(|_| format!("`{word}` is no number"))?;
    }
    Ok(out)
}

/// `name:type` or `name:type~tolerance`.
fn column(text: &str) -> Result<Column, String> {
    let wrong = || format!("`{text}` is not `name:type`");
    let (name, kind) = text.rsplit_once(':').ok_or_else(wrong)?;
    let (kind, tolerance) = match kind.split_once('~') {
        Some((kind, tolerance)) => (kind, Tolerance::parse(tolerance).ok_or_else(wrong)?),
        None => (kind, Tolerance::Exact),
    };
    Ok(Column {
        name: name.into(),
        kind: Type::by_name(kind).ok_or_else(wrong)?,
        tolerance,
    })
}

#[test]
fn a_table_and_its_settings() {
    let text = "// Adds.\n// @block 4 2\n// a:u8 b:s16 -> sum:s32 root:f32~2ulp\n// 1 -2 -> -1 ?\n// 2* 0 0 -> 0 0.5\n.target sm_90a\n// 9 -> 9";
    let case = Case::parse("adds", text).unwrap();
    assert_eq!((case.arch, case.threads(), case.rows.len()), (90, 8, 3));
    assert_eq!(case.outputs[1].tolerance, Tolerance::Units(2.0));
    assert_eq!(case.rows[0].outputs, [Some(0xffff_ffff), None]);
    assert_eq!(case.input_bytes()[..8], 1u64.to_le_bytes());
    assert_eq!(case.input_bytes()[64..72], 0xfffe_u64.to_le_bytes());
    let mut out = vec![0; case.output_size()];
    let wrong = case.differences(&out);
    assert!(
        wrong[0].starts_with("thread 0, sum: 0 (0x00000000) is not -1 (0xffffffff)"),
        "{wrong:?}"
    );
    // threads 0, 3 and 6 expect -1; the other five expect 0 and 0.5
    assert_eq!(wrong.len(), 3 + 5);
    for thread in [0, 3, 6] {
        out[8 * thread..8 * thread + 4].fill(0xff);
    }
    assert_eq!(case.differences(&out).len(), 5);
}

#[test]
fn mistakes_in_a_header_are_errors() {
    for (header, part) in [
        ("// @blocks 4", "is no setting"),
        ("// a:u8 -> b:u9", "is not `name:type`"),
        ("// a:u8 -> b:u8\n// 1 2 -> 3", "2 values for 1 columns"),
        ("// a:u8 -> b:u8\n// 256 -> 3", "is no value of a"),
        ("// a:u8 -> b:u8\n// ? -> 3", "as an input"),
        ("// @block 1 1 1 1", "more than three"),
    ] {
        let error = Case::parse("x", &format!("{header}\n.target sm_80")).unwrap_err();
        assert!(error.contains(part), "{header}: {error}");
    }
}
