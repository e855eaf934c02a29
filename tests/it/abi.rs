//! The table of kernels as build.rs compiled it.

use std::collections::BTreeSet;

use seqmix::{KernelInfo, images, kernels};

/// Head dims of the attention kernels, for each of f16 and bf16.
const HEAD_DIMS: [u32; 7] = [32, 64, 96, 128, 160, 192, 256];

/// Tiles of the matrix multiplication, for each of f16 and bf16 and each layout of the operands.
const TILES: [&str; 5] = ["128x256", "128x128", "64x64", "32x64", "16x128"];

/// Those with an adapter, for each of f16 and bf16 and each layout of b.
const LORA_TILES: [&str; 2] = ["128x128", "32x64"];

/// Those for f32, for each layout of the operands.
const F32_TILES: [&str; 2] = ["128x128", "64x64"];

const LAYOUTS: [&str; 4] = ["nn", "nt", "tn", "tt"];

/// Widths and contiguous axes of the causal convolution, for each of f16, bf16 and f32.
const CONV_ROWS: [&str; 4] = ["w4_dim", "w8_dim", "w4_seqlen", "w8_seqlen"];

/// State sizes of state space duality, for each type.
const SSD_SIZES: [(&str, &[u32]); 3] = [
    ("f16", &[64, 128, 256]),
    ("bf16", &[64, 128, 256]),
    ("f32", &[128, 256]),
];

/// Channels of z, and for attention those of values, of the gated attention unit's rows, for each type.
const GAU_ROWS: [(&str, [&[&str]; 2]); 3] = [
    (
        "f16",
        [
            &["z64", "z128", "z256"],
            &["z64_v256", "z128_v256", "z128_v512", "z256_v256"],
        ],
    ),
    (
        "bf16",
        [
            &["z64", "z128", "z256"],
            &["z64_v256", "z128_v256", "z128_v512", "z256_v256"],
        ],
    ),
    ("f32", [&["z128", "z256"], &["z128_v256", "z256_v128"]]),
];

/// Numbers and state sizes of the selective scan's rows, forward and backward.
const SCAN_ROWS: [&[&str]; 2] = [
    &[
        "real_4",
        "real_16",
        "real_32",
        "real_64",
        "real_128",
        "real_256",
        "real_64_any",
        "real_256_any",
        "complex_64_any",
        "complex_256_any",
    ],
    &[
        "real_16",
        "real_64",
        "real_256",
        "real_64_any",
        "real_256_any",
        "complex_64_any",
        "complex_256_any",
    ],
];

/// Sizes of the kernels of linear attention: those that walk over sequences, for each type, and those of one step.
const LINEAR_SIZES: [u32; 3] = [64, 128, 256];
const LINEAR_WALKS: [&str; 8] = [
    "walk_step",
    "walk_channel",
    "delta_step",
    "delta_channel",
    "delta_gradients_step",
    "delta_gradients_channel",
    "gradient_walk_step",
    "gradient_walk_channel",
];

/// Kernels of RWKV-4's average and of the linear recurrent unit, for each type.
const RECURRENCES: [&str; 6] = ["ends", "forward", "states", "turns", "backward", "step"];

/// The small kernels of the selective scan, for real and complex numbers.
const SCAN_OTHERS: [&str; 4] = ["carry", "channel_sums", "step", "step_sums"];

#[test]
fn the_table_has_every_kernel_for_every_target() {
    let of_dtype = |dtype: &&str| {
        let attention = HEAD_DIMS.map(|dim| format!("attention_forward_{dtype}_d{dim}"));
        let gemm =
            TILES.map(|tile| LAYOUTS.map(|layouts| format!("gemm_{dtype}_{tile}_{layouts}")));
        let lora = LORA_TILES
            .map(|tile| ["nn", "nt"].map(|layouts| format!("gemm_lora_{dtype}_{tile}_{layouts}")));
        let gemm = gemm.into_iter().flatten();
        attention
            .into_iter()
            .chain(gemm)
            .chain(lora.into_iter().flatten())
    };
    let of_ssd = |(dtype, sizes): (&'static str, &'static [u32])| {
        let passes = ["forward", "gradients", "sweep", "sweep_back"].into_iter();
        passes
            .flat_map(move |pass| {
                sizes
                    .iter()
                    .map(move |size| format!("ssd_{pass}_{dtype}_n{size}"))
            })
            .chain([format!("ssd_sum_coefficients_{dtype}")])
    };
    let of_conv = |dtype: &'static str| {
        let passes = ["forward", "backward"]
            .map(|pass| CONV_ROWS.map(|row| format!("causal_conv1d_{pass}_{dtype}_{row}")));
        let update = format!("causal_conv1d_update_{dtype}");
        passes.into_iter().flatten().chain([update])
    };
    let of_gau = |(dtype, [tiles, attend]): (&'static str, [&'static [&'static str]; 2])| {
        let name =
            move |kernel: &str, row: &str| format!("gated_attention_unit_{kernel}_{dtype}_{row}");
        let tiles = tiles
            .iter()
            .flat_map(move |row| ["states", "gradients"].map(|kernel| name(kernel, row)));
        let attend = attend.iter().map(move |row| name("attend", row));
        tiles
            .chain(attend)
            .chain([format!("gated_attention_unit_carry_{dtype}")])
    };
    let scan = ["forward", "backward"].into_iter().zip(SCAN_ROWS);
    let scan = scan.flat_map(|(pass, rows)| {
        let name = move |row: &&str| format!("selective_scan_{pass}_{row}");
        rows.iter().map(name)
    });
    let scan_others = SCAN_OTHERS
        .map(|name| ["real", "complex"].map(|numbers| format!("selective_scan_{name}_{numbers}")));
    let of_linear = |dtype| {
        let of_size = move |walk: &str, size| format!("linear_attention_{walk}_{dtype}_n{size}");
        let walks = LINEAR_WALKS.map(|walk| LINEAR_SIZES.map(|size| of_size(walk, size)));
        let others = [
            "delta_sum_betas",
            "sum_heads",
            "bonus_gradient",
            "decay_gradient",
            "head_decay",
            "last_channels",
            "normalizer_gradient",
            "row_products",
        ]
        .map(|kernel| format!("linear_attention_{kernel}_{dtype}"));
        walks.into_iter().flatten().chain(others)
    };
    let linear_steps = LINEAR_SIZES.map(|size| format!("linear_attention_step_n{size}"));
    let recurrences = |dtype| {
        let names = move |op| RECURRENCES.map(|name| format!("{op}_{name}_{dtype}"));
        ["rwkv4", "lru"].into_iter().flat_map(names)
    };
    let rwkv7 = [32, 64, 128].map(|size| {
        let kernels = ["forward_n*_s1", "forward_n*_s4", "backward_n*", "replay_n*"];
        kernels.map(|name| format!("rwkv7_{}", name.replace('*', &size.to_string())))
    });
    let f32 = F32_TILES.map(|tile| LAYOUTS.map(|layouts| format!("gemm_f32_{tile}_{layouts}")));
    let sums = ["f16", "bf16", "f32"].map(|dtype| format!("gemm_sum_splits_{dtype}"));
    let expected: BTreeSet<String> = ["f16", "bf16"]
        .iter()
        .flat_map(of_dtype)
        .chain(f32.into_iter().flatten())
        .chain(sums)
        .chain(["gemm_column_sums".into()])
        .chain(["f16", "bf16", "f32"].into_iter().flat_map(of_conv))
        .chain(["causal_conv1d_sum", "ssd_carry", "ssd_sum_parameters"].map(String::from))
        .chain(SSD_SIZES.into_iter().flat_map(of_ssd))
        .chain(["gated_attention_unit_sums".into()])
        .chain(GAU_ROWS.into_iter().flat_map(of_gau))
        .chain(scan)
        .chain(["f16", "bf16", "f32"].into_iter().flat_map(recurrences))
        .chain(["rwkv4_sums", "lru_sums"].map(String::from))
        .chain(rwkv7.into_iter().flatten())
        .chain(["f16", "bf16", "f32"].into_iter().flat_map(of_linear))
        .chain(linear_steps)
        .chain(
            [
                "carry",
                "delta_carry",
                "sum_spans",
                "last_decays",
                "last_states",
            ]
            .map(|name| format!("linear_attention_{name}")),
        )
        .chain(scan_others.into_iter().flatten())
        .collect();
    let targets: BTreeSet<&str> = kernels().iter().map(|kernel| kernel.arch).collect();
    assert!(
        !targets.is_empty(),
        "no kernels in this build: run `cargo xtask toolkit` and build again"
    );
    for target in &targets {
        let of_target = kernels().iter().filter(|kernel| kernel.arch == *target);
        let names: Vec<String> = of_target.map(|kernel| kernel.name.to_owned()).collect();
        let unique: BTreeSet<String> = names.iter().cloned().collect();
        assert_eq!(
            names.len(),
            unique.len(),
            "{target}: a kernel twice: {names:?}"
        );
        assert_eq!(unique, expected, "{target}");
    }
}

#[test]
fn no_kernel_spills_or_asks_for_more_than_a_device_has() {
    for kernel in kernels() {
        let KernelInfo {
            name,
            arch,
            registers,
            spill_bytes,
            shared_bytes,
            threads,
        } = *kernel;
        assert_eq!(spill_bytes, 0, "{name} for {arch} spills registers");
        assert!(
            (1..=255).contains(&registers),
            "{name} for {arch}: {registers} registers"
        );
        assert!(
            registers * threads <= 65536,
            "{name} for {arch}: {registers} registers in {threads} threads"
        );
        assert!(
            shared_bytes <= 163 << 10,
            "{name} for {arch}: {shared_bytes} bytes of shared memory"
        );
    }
}

#[test]
fn every_image_holds_a_fatbin_for_the_targets_of_the_build() {
    let mut units = BTreeSet::new();
    for image in images() {
        assert!(units.insert(image.unit), "two images named {}", image.unit);
        assert_eq!(
            image.fatbin[..4],
            0xba55_ed50_u32.to_le_bytes(),
            "{} is no fatbin",
            image.unit
        );
        assert!(!image.targets.is_empty(), "{} names no targets", image.unit);
    }
    assert!(!units.is_empty());
}
