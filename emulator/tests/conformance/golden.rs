//! What devices gave: files of one device each, written on request and compared with on every run.
//!
//! The first line of a file is the device's name. Then a line a form and output: the form's name, a tab, the output's
//! number, a tab, and a word in hexadecimal for each lane.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::form::Form;

/// Outputs by form and column.
type Outputs = BTreeMap<(String, usize), Vec<u64>>;

/// Collects the outputs of one chapter.
pub(crate) struct Recorder {
    device: String,
    chapter: String,
    folder: Option<PathBuf>,
    lines: String,
    known: Vec<(String, Outputs)>,
    wrong: Vec<String>,
}

impl Recorder {
    pub(crate) fn new(chapter: &str, device: &str) -> Recorder {
        Recorder {
            device: device.into(),
            chapter: chapter.into(),
            folder: std::env::var_os("CONFORMANCE_GOLDEN").map(PathBuf::from),
            lines: String::new(),
            known: known(),
            wrong: Vec::new(),
        }
    }

    pub(crate) fn record(&mut self, form: &Form, out: &[Vec<u64>]) {
        for (at, column) in out.iter().enumerate() {
            if self.folder.is_some() {
                let words: Vec<String> = column.iter().map(|word| format!("{word:x}")).collect();
                self.lines += &format!("{}\t{at}\t{}\n", form.name, words.join(" "));
            }
            let kind = form.outputs[at];
            for (device, outputs) in &self.known {
                let Some(golden) = outputs.get(&(form.name.clone(), at)) else {
                    continue;
                };
                let near = golden.len() == column.len()
                    && golden
                        .iter()
                        .zip(column)
                        .all(|(&golden, &found)| form.tolerance.accepts(kind, golden, found));
                if !near {
                    self.wrong
                        .push(format!("{}, %o{at}: not what {device} gave", form.name));
                }
            }
        }
    }

    /// Writes the file, if asked to; the differences from known devices.
    pub(crate) fn finish(self) -> Vec<String> {
        if let Some(folder) = self.folder {
            let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
            let device: String = self.device.chars().map(plain).collect();
            fs::create_dir_all(&folder).unwrap();
            let file = folder.join(format!("{device}.{}.txt", self.chapter));
            fs::write(file, format!("{}\n{}", self.device, self.lines)).unwrap();
        }
        self.wrong
    }
}

/// The files beside this one.
fn known() -> Vec<(String, Outputs)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/golden");
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .map(|entry| read(&fs::read_to_string(entry.unwrap().path()).unwrap()))
        .collect()
}

fn read(text: &str) -> (String, Outputs) {
    let (device, lines) = text.split_once('\n').unwrap_or((text, ""));
    let line = |line: &str| {
        let mut parts = line.split('\t');
        let (name, at, words) = (parts.next()?, parts.next()?, parts.next()?);
        let words = words
            .split(' ')
            .map(|word| u64::from_str_radix(word, 16).ok());
        Some((
            (name.into(), at.parse().ok()?),
            words.collect::<Option<_>>()?,
        ))
    };
    let outputs = lines
        .lines()
        .map(|text| line(text).unwrap_or_else(|| panic!("not a line of outputs: {text}")))
        .collect();
    (device.into(), outputs)
}

#[test]
fn a_file_is_read_as_it_is_written() {
    let (device, outputs) = read("A device\nadd.s32\t0\t1 ff 0\nsub.s32\t1\t7\n");
    assert_eq!(device, "A device");
    assert_eq!(outputs[&("add.s32".into(), 0)], [1, 255, 0]);
    assert_eq!(outputs[&("sub.s32".into(), 1)], [7]);
}
