//! The symbols that the kit's program needs of other libraries, held against those that the
//! libraries have.
//!
//! The program is linked against empty libraries of the right names where there are no real ones,
//! so the linker has not looked. CUDA's own come from the pinned wheels, those of the driver from
//! `cuda.h`, which says what a driver of that version has.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};
use crate::process;

/// A Debian 12 has this one; Ubuntu 24.04 has 2.39.
pub(super) const NEWEST_GLIBC: (u32, u32) = (2, 36);

/// The libraries that a program names, and the symbols that it needs of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Needs {
    pub libraries: Vec<String>,
    pub symbols: BTreeSet<String>,
}

/// What a program needs, from its dynamic section.
///
/// # Errors
/// When `nm` or `readelf` cannot read it.
pub(super) fn needs(program: &Path) -> Result<Needs> {
    let undefined = tool("nm", &["--dynamic", "--undefined-only"], program)?;
    let sections = tool("readelf", &["--dynamic", "--wide"], program)?;
    Ok(Needs { libraries: needed(&sections), symbols: strong(&undefined) })
}

/// The symbols that a library has.
///
/// # Errors
/// As [`needs`].
pub(super) fn defined(library: &Path) -> Result<BTreeSet<String>> {
    let text = tool("nm", &["--dynamic", "--defined-only"], library)?;
    Ok(names(&text, |_| true))
}

fn tool(name: &str, arguments: &[&str], file: &Path) -> Result<String> {
    let mut command: Command = process::command(name);
    process::capture(command.args(arguments).arg(file), name).map_err(|error| {
        Error::Other(format!("{}: {error}. {name} is in Debian's package binutils", file.display()))
    })
}

/// `0x0000000000000001 (NEEDED)  Shared library: [libcuda.so.1]`
fn needed(sections: &str) -> Vec<String> {
    let names = sections.lines().filter(|line| line.contains("(NEEDED)"));
    names.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())).collect()
}

/// Undefined symbols but weak ones, which may be missing.
fn strong(undefined: &str) -> BTreeSet<String> {
    names(undefined, |kind| kind == "U")
}

/// `                 U cuInit`, `0000000000001234 T cudaMalloc@@libcudart.so.13`
fn names(text: &str, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in text.lines() {
        let mut words = line.split_whitespace().rev();
        if let (Some(name), Some(kind)) = (words.next(), words.next())
            && wanted(kind)
        {
            names.insert(name.split('@').next().unwrap_or(name).to_owned());
        }
    }
    names
}

/// The functions of the driver that its header of this version names.
pub(super) fn driver(header: &str) -> BTreeSet<String> {
    header
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("cu"))
        .map(str::to_owned)
        .collect()
}

/// Whether a name is of the driver's library: `cuInit`, but not `cudaMalloc`.
fn is_driver(name: &str) -> bool {
    name.strip_prefix("cu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// The symbols that nobody has.
pub(super) fn missing(
    needs: &BTreeSet<String>,
    libraries: &BTreeSet<String>,
    driver: &BTreeSet<String>,
) -> Vec<String> {
    needs
        .iter()
        .filter(|name| {
            let there = if is_driver(name) { driver } else { libraries };
            !there.contains(*name)
        })
        .cloned()
        .collect()
}

/// The source of a library with these functions, all of which answer `code`: with 100 none finds a
/// GPU, as on a machine with CUDA's libraries and no card (it is `CUDA_ERROR_NO_DEVICE`, and an error
/// of every other library); with 0 all seem to succeed, and nothing is computed.
pub(super) fn stub(symbols: &BTreeSet<String>, code: u8) -> String {
    symbols.iter().map(|name| format!("int {name}(void) {{ return {code}; }}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_the_tools_print_is_read() {
        let undefined = "                 U cuInit\n                 w __cxa_finalize@GLIBC_2.2.5\n                 U malloc@GLIBC_2.2.5\n";
        assert_eq!(strong(undefined), set(&["cuInit", "malloc"]));
        let defined =
            "0000000000001000 T cudaMalloc@@libcudart.so.13\n0000000000000000 A libcudart.so.13\n";
        assert_eq!(names(defined, |_| true), set(&["cudaMalloc", "libcudart.so.13"]));
        let sections = " 0x0000000000000001 (NEEDED)             Shared library: [libcuda.so.1]\n 0x000000000000000c (INIT)               0x1000\n";
        assert_eq!(needed(sections), ["libcuda.so.1"]);
    }

    #[test]
    fn a_symbol_that_no_library_has_is_named() {
        let header =
            "#define cuMemAlloc cuMemAlloc_v2\nCUresult CUDAAPI cuInit(unsigned int Flags);";
        let driver = driver(header);
        let libraries = set(&["cudaMalloc", "malloc"]);
        let found = |needs: &[&str]| missing(&set(needs), &libraries, &driver);
        assert!(found(&["cuInit", "cuMemAlloc_v2", "cudaMalloc", "malloc"]).is_empty());
        assert_eq!(found(&["cuInit_v9", "cudaNew", "cuInit"]), ["cuInit_v9", "cudaNew"]);
    }

    #[test]
    fn a_stub_has_every_function() {
        assert_eq!(stub(&set(&["cuInit"]), 100), "int cuInit(void) { return 100; }\n");
    }
}
