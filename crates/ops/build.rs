//! With the feature `cuda`: compiles the kernels of `src/cuda/kernels` to PTX, which the driver
//! turns into code for its GPU. Does nothing without it.

// A build script says what is wrong by failing.
#![allow(clippy::panic)]

use std::path::PathBuf;
use std::process::Command;

/// The oldest architecture with bf16 tensor cores (Ampere); newer GPUs take its PTX, too.
const ARCHITECTURE: &str = "compute_80";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/cuda/kernels");
    for variable in ["CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let nvcc = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(folder)
        .map(|home| home.join("bin/nvcc"))
        .find(|nvcc| nvcc.is_file())
        .unwrap_or_else(|| "nvcc".into());
    let out = folder("OUT_DIR").expect("cargo sets OUT_DIR");
    for name in ["rows", "elements", "attention"] {
        let mut command = Command::new(&nvcc);
        command.args(["-ptx", "-O3", "-std=c++17", &format!("-arch={ARCHITECTURE}")]);
        if let Some(compiler) = folder("NVCC_CCBIN") {
            command.arg("-ccbin").arg(compiler);
        }
        command
            .arg(format!("src/cuda/kernels/{name}.cu"))
            .arg("-o")
            .arg(out.join(format!("{name}.ptx")));
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("nvcc ended with {status} on {name}.cu"),
            Err(error) => panic!(
                "the feature `cuda` needs nvcc: cannot start `{}` ({error}). `cargo xtask lab --cuda` fetches it; or set CUDA_HOME",
                nvcc.display()
            ),
        }
    }
}
