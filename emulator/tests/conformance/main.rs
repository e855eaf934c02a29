//! Every form of every portable instruction, in a kernel of its own that writes down what each lane got.
//!
//! `table/` lists the forms, one file a chapter, each with what must come out by another route: host arithmetic on exact
//! integers, exact fractions rounded by search ([`exact`]), or the formula of the PTX manual. The texts go through the
//! driver API as any program's do, so that the same tests run on a GPU: `CONFORMANCE_DRIVER=cuda` insists on one,
//! `CONFORMANCE_DRIVER=emulator` on the emulator, and without it a GPU is taken where there is one.
//!
//! `CONFORMANCE_GOLDEN=FOLDER` writes what came out to `FOLDER/DEVICE.CHAPTER.txt`, a line a form and column; files of that form
//! in `golden/` beside this file are what devices gave, and are compared with on every run.

#[path = "../support/ptxas.rs"]
mod assembler;
mod coverage;
mod device;
mod exact;
mod form;
mod golden;
mod ptxas;
mod table;
#[path = "../it/value.rs"]
mod value;

use device::check;

/// One test a chapter, so that they run beside each other.
macro_rules! chapters {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            check(stringify!($name), &table::$name::forms());
        }
    )*

        /// Every chapter and its forms.
        fn all() -> Vec<(&'static str, Vec<form::Form>)> {
            vec![$((stringify!($name), table::$name::forms())),*]
        }
    };
}

chapters! { integer bits carry video float half compare convert exchange memory atomic matrix }

#[test]
fn names_are_unique() {
    let mut names: Vec<String> = all()
        .into_iter()
        .flat_map(|(_, forms)| forms.into_iter().map(|form| form.name))
        .collect();
    let count = names.len();
    assert!(count >= 2000, "only {count} forms");
    names.sort();
    let twice: Vec<_> = names.windows(2).filter(|two| two[0] == two[1]).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn a_wrong_lane_is_noticed() {
    let form = form::Form::simple("add.u32", "u32 u32", "u32", |x| {
        x[0] + x[1] + u64::from(x == [1, 2])
    });
    let (_, wrong) = device::failures("planted", &[form]);
    let words = "add.u32: 2 lanes, first lane 25, %o0: 3 (0x00000003) is not 4";
    assert!(wrong.len() == 1 && wrong[0].starts_with(words), "{wrong:?}");
}
