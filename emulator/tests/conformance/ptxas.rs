//! Every text is PTX to the real assembler too, where it is at hand.

use std::collections::BTreeMap;

use crate::assembler::{assemble, find};

#[test]
fn the_assembler_accepts_every_text() {
    let Some(ptxas) = find() else {
        println!("no ptxas beside nvcc: the texts are not assembled");
        return;
    };
    let mut failures = Vec::new();
    for arch in [80, 86, 89, 90] {
        // the forms of a chapter that have the same declarations, in one text
        let mut modules: BTreeMap<(&str, String), String> = BTreeMap::new();
        for (chapter, forms) in crate::all() {
            for (at, form) in forms.iter().filter(|form| form.arch == arch).enumerate() {
                let kernel = form.kernel(&format!("form{at}"));
                let text = modules.entry((chapter, form.module.clone())).or_default();
                *text += &format!("// {}\n{kernel}", form.name.replace('\n', " "));
            }
        }
        for (at, ((chapter, module), kernels)) in modules.into_iter().enumerate() {
            let name = format!("{chapter}{at}");
            let text =
                format!(".version 8.7\n.target sm_{arch}\n.address_size 64\n{module}\n{kernels}");
            failures.extend(assemble(&ptxas, &arch.to_string(), &name, &text));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
