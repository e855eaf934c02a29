//! Tests of images: what is taken of each, and what is refused.

use super::container::{FLAG_ARCH_SPECIFIC, FLAG_FAMILY_SPECIFIC};
use super::cubins::cubin;
use super::fatbin::{Entry as Part, Packing, fatbin, ptx as part};
use super::*;

fn pick(image: &[u8], device: &Device) -> Result<String, ImageError> {
    ptx(image, device).map(Cow::into_owned)
}

#[test]
fn text_may_end_in_a_nul_and_begin_with_space() {
    for image in ["\n.version 9.0", "\n.version 9.0\0junk", "\n.version 9.0\0"] {
        assert_eq!(
            pick(image.as_bytes(), &Device::sm_80()).unwrap(),
            "\n.version 9.0"
        );
    }
}

#[test]
fn every_packing_unpacks() {
    let text = format!("// {}\n.version 9.0", "x".repeat(700));
    for packing in [Packing::Plain, Packing::Zstd, Packing::Lz4] {
        let entry = Part {
            packing,
            ..part(80, &text)
        };
        let found = pick(&fatbin(&[entry]), &Device::sm_80());
        assert_eq!(found.as_deref(), Ok(&*text), "{packing:?}");
    }
}

#[test]
fn the_arch_decides_which_ptx_is_taken() {
    const A: u64 = FLAG_ARCH_SPECIFIC;
    const F: u64 = FLAG_FAMILY_SPECIFIC;
    type Entries = &'static [(u32, u64)];
    #[rustfmt::skip]
    let cases: &[(&str, Entries, &str, &str)] = &[
        ("a variant of the arch wins",  &[(80, 0), (90, 0), (90, A)], ".80.0", ".90.a"),
        ("no variant of another arch",  &[(80, 0), (86, A)],          ".80.0", ".80.0"),
        ("the highest below",           &[(75, 0), (70, 0)],          ".75.0", ".75.0"),
        ("order does not matter",       &[(90, A), (80, 0), (75, 0)], ".80.0", ".90.a"),
        ("family up to the device",     &[(75, 0), (80, F)],          ".80.f", ".75.0"),
        ("too new is passed over",      &[(100, 0), (80, 0)],         ".80.0", ".80.0"),
    ];
    for (case, entries, on_80, on_90) in cases {
        let texts: Vec<String> = (entries.iter())
            .map(|(arch, v)| {
                let variant = if *v == A {
                    "a"
                } else if *v == F {
                    "f"
                } else {
                    "0"
                };
                format!(".{arch}.{variant}")
            })
            .collect();
        let parts: Vec<Part<'_>> = (entries.iter().zip(&texts))
            .map(|((arch, variant), text)| Part {
                variant: *variant,
                ..part(*arch, text)
            })
            .collect();
        let image = fatbin(&parts);
        assert_eq!(
            pick(&image, &Device::sm_80()).unwrap(),
            *on_80,
            "{case}, sm_80"
        );
        assert_eq!(
            pick(&image, &Device::sm_90()).unwrap(),
            *on_90,
            "{case}, sm_90"
        );
    }
}

#[test]
fn images_that_cannot_run_say_what_to_build() {
    let sass = |arch, variant| Part {
        kind: KIND_ELF,
        variant,
        ..part(arch, "code")
    };
    let cubin = |abi: u8, flags: u32| {
        let mut header = b"\x7fELF\x02\x01\x01\x41".to_vec();
        header.push(abi);
        header.resize(48, 0);
        header.extend(flags.to_le_bytes());
        header
    };
    let hopper = part(90, ".version 9.0");
    #[rustfmt::skip]
    let cases: &[(Vec<u8>, &str)] = &[
        (fatbin(&[sass(80, 0), sass(90, FLAG_ARCH_SPECIFIC)]), "only SASS for sm_80, sm_90a"),
        (fatbin(&[sass(80, 0)]), "code=compute_80"),
        (fatbin(&[]), "only SASS for no target"),
        (fatbin(&[hopper, sass(80, 0)]), "PTX for compute_90, which a device of sm_80 cannot"),
        (cubin(8, 0x0600_5a04), "only SASS for sm_90"),
        (cubin(7, 0x0050_0550), "only SASS for sm_80"),
        (b"MZ\x90\0".to_vec(), "no module image (it begins with [4d, 5a, 90])"),
        (b"\n \0".to_vec(), "image is empty"),
        (vec![], "image is empty"),
        (b".version \xff".to_vec(), "not UTF-8 at byte 9"),
    ];
    for (image, expected) in cases {
        let error = pick(image, &Device::sm_80()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}

#[test]
fn damaged_fatbins_are_refused() {
    let whole = fatbin(&[Part {
        packing: Packing::Zstd,
        ..part(80, ".version 9.0")
    }]);
    for len in 4..whole.len() {
        assert!(
            pick(&whole[..len], &Device::sm_80()).is_err(),
            "cut at {len}"
        );
    }
    for (at, name) in [
        (16 + 4, "header size"),
        (16 + 8, "size"),
        (16 + 16, "compressed size"),
    ] {
        let mut image = whole.clone();
        image[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = pick(&image, &Device::sm_80()).unwrap_err();
        assert!(
            matches!(error, ImageError::Truncated { .. }),
            "{name}: {error}"
        );
    }
    let mut image = whole.clone();
    image[16 + 56] += 1;
    let error = pick(&image, &Device::sm_80()).unwrap_err().to_string();
    assert!(error.contains("12 bytes instead of 13"), "{error}");
}

#[test]
fn a_pointer_is_measured_by_what_it_points_to() {
    let binary = fatbin(&[part(80, ".version 9.0")]);
    let mut wrapper = WRAPPER_MAGIC.to_le_bytes().to_vec();
    wrapper.extend(1_u32.to_le_bytes());
    wrapper.extend((binary.as_ptr() as usize).to_le_bytes());
    let mut cubin = b"\x7fELF".to_vec();
    cubin.resize(64, 1);
    let text = b".version 9.0\0junk";
    for (image, expected) in [
        (&text[..], &text[..12]),
        (b"P\0", b"P"), // shares its first byte with the magic of a fatbin
        (&binary[..], &binary[..]),
        (&wrapper[..], &binary[..]),
        (&cubin[..], &cubin[..]),
    ] {
        // SAFETY: each is a whole image of its kind, and outlives the borrow.
        let found = unsafe { at(image.as_ptr().cast()) };
        assert_eq!(found, Ok(expected));
    }
    // SAFETY: null is allowed.
    assert_eq!(unsafe { at(std::ptr::null()) }, Err(ImageError::Empty));
}

#[test]
fn registers_come_from_the_machine_code_that_the_device_would_run() {
    let (plain, hopper, old) = (
        cubin(80, &[("walk", 255), ("step", 24)]),
        cubin(90, &[("walk", 168)]),
        cubin(75, &[("walk", 1)]),
    );
    let sass = |arch, variant, payload, packing| Part {
        kind: KIND_ELF,
        arch,
        variant,
        packing,
        payload,
    };
    let image = fatbin(&[
        sass(75, 0, &old, Packing::Plain),
        sass(80, 0, &plain, Packing::Zstd),
        part(80, ".version 9.0"),
        sass(90, FLAG_ARCH_SPECIFIC, &hopper, Packing::Plain),
    ]);
    let found = |device| registers(&image, &device).into_iter().collect::<Vec<_>>();
    assert_eq!(
        found(Device::sm_80()),
        [("step".to_owned(), 24), ("walk".to_owned(), 255)]
    );
    assert_eq!(found(Device::sm_90()), [("walk".to_owned(), 168)]);
    let ampere = fatbin(&[
        part(80, ".version 9.0"),
        sass(80, 0, &plain, Packing::Plain),
    ]);
    assert!(
        registers(&ampere, &Device::sm_90()).is_empty(),
        "code for Ampere does not run on Hopper"
    );
    for image in [&ampere[..40], &plain, b".version 9.0"] {
        assert!(registers(image, &Device::sm_80()).is_empty());
    }
}
