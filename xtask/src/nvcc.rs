//! Where nvcc is, and which version it is.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where `cargo xtask toolkit` puts NVIDIA's wheels, below the repository's root.
pub(crate) const TOOLKIT: &str = "target/cuda-toolkit";

/// nvcc in the folder of the wheels of CUDA 13.
pub(crate) const NVCC_IN_TOOLKIT: &str = "nvidia/cu13/bin/nvcc";

/// CUDA's major and minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A compiler that answered `--version`.
#[derive(Debug)]
pub(crate) struct Nvcc {
    pub(crate) path: PathBuf,
    /// What named it: an environment variable, PATH or a folder.
    pub(crate) source: &'static str,
    pub(crate) version: Version,
}

/// The nvcc that build.rs will use, by the same order: NVCC, CUDA_HOME, CUDA_PATH, PATH,
/// /usr/local/cuda, target/cuda-toolkit. `None` if there is none.
pub(crate) fn find() -> Result<Option<Nvcc>> {
    let Some((source, path)) = locate(&crate::root(), |name| env::var_os(name)) else {
        return Ok(None);
    };
    let version = version(&path).with_context(|| format!("nvcc from {source}"))?;
    Ok(Some(Nvcc {
        path,
        source,
        version,
    }))
}

fn locate(
    root: &Path,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Option<(&'static str, PathBuf)> {
    // A path that the user names is not passed over in silence when it is wrong.
    if let Some(path) = variable("NVCC").filter(|path| !path.is_empty()) {
        return Some(("NVCC", path.into()));
    }
    let file = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let in_home = |name: &'static str| {
        let home = variable(name).filter(|home| !home.is_empty())?;
        Some((name, Path::new(&home).join("bin").join(&file)))
    };
    let on_path = variable("PATH").into_iter().flat_map(|path| {
        env::split_paths(&path)
            .map(|folder| ("PATH", folder.join(&file)))
            .collect::<Vec<_>>()
    });
    in_home("CUDA_HOME")
        .into_iter()
        .chain(in_home("CUDA_PATH"))
        .chain(on_path)
        .chain([
            (
                "/usr/local/cuda",
                Path::new("/usr/local/cuda/bin").join(&file),
            ),
            (TOOLKIT, root.join(TOOLKIT).join(NVCC_IN_TOOLKIT)),
        ])
        .find(|(_, path)| path.is_file())
}

/// What `path --version` says.
pub(crate) fn version(path: &Path) -> Result<Version> {
    let output = Command::new(path)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match parse_version(&text) {
        Some(version) if output.status.success() => Ok(version),
        _ => bail!(
            "{} --version failed or named no release: {}{}",
            path.display(),
            text.trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

/// Reads `Cuda compilation tools, release 13.0, V13.0.88`.
fn parse_version(text: &str) -> Option<Version> {
    let release = text.split_once("release ")?.1;
    let (major, rest) = release.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some(Version(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn place(root: &Path, path: &str) -> PathBuf {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        path
    }

    fn scratch(name: &str) -> PathBuf {
        let folder = env::temp_dir().join(format!("seqmix-nvcc-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn versions_are_read_from_the_release_line() {
        let banner = "nvcc: NVIDIA (R) Cuda compiler driver\n\
            Cuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0.r13.0/compiler.1_0";
        assert_eq!(parse_version(banner), Some(Version(13, 0)));
        assert_eq!(parse_version("release 12.10"), Some(Version(12, 10)));
        assert_eq!(parse_version("release thirteen"), None);
        assert_eq!(parse_version("ptxas fatal"), None);
        assert!(Version(12, 9) < Version(13, 0) && Version(13, 4) < Version(13, 10));
    }

    #[test]
    fn the_environment_comes_before_path_and_path_before_the_wheels() {
        let root = scratch("order");
        let wheels = place(&root, "target/cuda-toolkit/nvidia/cu13/bin/nvcc");
        let path = place(&root, "path/nvcc");
        let cuda_path = place(&root, "cuda_path/bin/nvcc");
        let home = place(&root, "home/bin/nvcc");
        let empty = root.join("empty");
        let environment = |given: &[(&str, PathBuf)]| {
            locate(&root, |name| {
                given
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.clone().into_os_string())
            })
        };
        let paths = env::join_paths([empty.clone(), root.join("path")]).unwrap();
        let mut given = vec![
            ("NVCC", root.join("gone")),
            ("CUDA_HOME", root.join("home")),
            ("CUDA_PATH", root.join("cuda_path")),
            ("PATH", paths.into()),
        ];
        assert_eq!(environment(&given), Some(("NVCC", root.join("gone"))));
        given.remove(0);
        assert_eq!(environment(&given), Some(("CUDA_HOME", home)));
        given.remove(0);
        assert_eq!(environment(&given), Some(("CUDA_PATH", cuda_path)));
        given[0].1 = empty;
        assert_eq!(environment(&given), Some(("PATH", path)));
        if !Path::new("/usr/local/cuda/bin/nvcc").exists() {
            assert_eq!(environment(&[]), Some((TOOLKIT, wheels)));
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
