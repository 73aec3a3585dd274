//! The table at the head of each kernel source (registers, shared memory, and how many blocks and
//! warps a multiprocessor holds at a time): recomputed, and held against what ptxas says.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::process;

/// The sources, in `crates/ops/src/cuda/kernels`.
pub(super) const SOURCES: [&str; 3] = ["rows", "elements", "attention"];

/// A multiprocessor of compute capability 9.0 (CUDA C++ programming guide, technical
/// specifications): warps and blocks that it holds at most, 32-bit registers of each of its four
/// parts, and bytes of shared memory, of which the system takes 1 KB for each block.
const WARPS: usize = 64;
const BLOCKS: usize = 32;
const REGISTERS_OF_A_PART: usize = 16_384;
const PARTS: usize = 4;
const SHARED_BYTES: usize = 228 << 10;
const SHARED_BYTES_TAKEN: usize = 1 << 10;
/// Registers are given to a warp, and shared memory to a block, in so large pieces.
const REGISTERS_PIECE: usize = 256;
const SHARED_PIECE: usize = 128;

/// What a kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Takes {
    /// Of a thread.
    registers: usize,
    /// Of a block, in bytes.
    shared: usize,
    /// Stack and spilled bytes of a thread, which lie in the card's memory.
    spilled: usize,
}

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    threads: usize,
    takes: Takes,
    blocks: usize,
    warps: usize,
}

/// How many blocks of so many threads a multiprocessor holds at a time.
fn blocks(threads: usize, takes: Takes) -> usize {
    let warps = threads.div_ceil(32);
    let of_a_warp = (takes.registers * 32).next_multiple_of(REGISTERS_PIECE);
    let by_registers = REGISTERS_OF_A_PART / of_a_warp * PARTS / warps;
    let of_a_block = (takes.shared + SHARED_BYTES_TAKEN).next_multiple_of(SHARED_PIECE);
    by_registers.min(SHARED_BYTES / of_a_block).min(WARPS / warps).min(BLOCKS)
}

/// `// | rope_f32 | 256 | 24 | 0 | 8 | 64 |`
fn table(source: &str) -> BTreeMap<String, Line> {
    let mut lines = BTreeMap::new();
    for line in source.lines() {
        let cells: Vec<&str> = line
            .strip_prefix("// |")
            .map(|rest| rest.trim_end_matches('|').split('|').map(str::trim).collect())
            .unwrap_or_default();
        let [name, numbers @ ..] = cells.as_slice() else { continue };
        let numbers: Vec<usize> = numbers.iter().filter_map(|cell| cell.parse().ok()).collect();
        if let [threads, registers, shared, blocks, warps] = numbers[..] {
            let takes = Takes { registers, shared, spilled: 0 };
            lines.insert((*name).to_owned(), Line { threads, takes, blocks, warps });
        }
    }
    lines
}

/// What `ptxas -v` says of each kernel.
fn report(text: &str) -> BTreeMap<String, Takes> {
    let mut kernels = BTreeMap::new();
    let mut open: Option<(String, usize)> = None;
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            open = rest.split_once('\'').map(|(name, _)| (name.to_owned(), 0));
        } else if let (Some((_, spilled)), true) = (&mut open, line.contains("bytes stack frame")) {
            let numbers = line.split(',').filter_map(first_number);
            *spilled = numbers.sum();
        } else if line.contains(" registers")
            && let Some((name, spilled)) = open.take()
        {
            let number = |mark: &str| {
                line.split(',').find(|part| part.contains(mark)).and_then(first_number).unwrap_or(0)
            };
            let takes =
                Takes { registers: number("registers"), shared: number("bytes smem"), spilled };
            kernels.insert(name, takes);
        }
    }
    kernels
}

/// `ptxas info    : Used 24 registers` -> 24
fn first_number(text: &str) -> Option<usize> {
    text.split_whitespace().find_map(|word| word.parse().ok())
}

/// Where table and report differ.
fn differences(table: &BTreeMap<String, Line>, report: &BTreeMap<String, Takes>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, takes) in report {
        if takes.spilled > 0 {
            found.push(format!("{name} spills, or has a stack: {takes:?}"));
        }
        match table.get(name) {
            None => found.push(format!("{name} is not in the table: {takes:?}")),
            Some(line) if line.takes != *takes => {
                found.push(format!("{name}: the table says {:?}, ptxas {takes:?}", line.takes));
            }
            Some(line) => {
                let held = blocks(line.threads, line.takes);
                if (line.blocks, line.warps) != (held, held * line.threads / 32) {
                    found.push(format!(
                        "{name}: a multiprocessor holds {held} blocks, the table says {} and {} warps",
                        line.blocks, line.warps
                    ));
                }
            }
        }
    }
    let gone = table.keys().filter(|name| !report.contains_key(*name));
    found.extend(gone.map(|name| format!("{name} is in the table and not in the source")));
    found
}

/// Compiles every source for sm_90, as the driver does from its PTX, and compares.
///
/// # Errors
/// Kernels that spill, or that the tables have other numbers of.
pub(super) fn check(root: &Path, nvcc: &Path, scratch: &Path) -> Result<()> {
    let mut found = Vec::new();
    for name in SOURCES {
        let path = root.join("crates/ops/src/cuda/kernels").join(name).with_extension("cu");
        let source = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let mut command = process::command(nvcc);
        command
            .args(["-cubin", "-O3", "-std=c++17", "-Xptxas", "-v", "-ccbin", "g++"])
            .arg("-gencode=arch=compute_80,code=sm_90")
            .arg(&path)
            .arg("-o")
            .arg(scratch.join(name).with_extension("cubin"));
        let (succeeded, text) = process::show_and_keep(&mut command, |_| false)?;
        if !succeeded {
            return Err(Error::Other(format!("nvcc failed on {}:\n{text}", path.display())));
        }
        let differs = differences(&table(&source), &report(&text));
        found.extend(differs.into_iter().map(|what| format!("{name}.cu: {what}")));
    }
    if found.is_empty() { Ok(()) } else { Err(Error::Other(found.join("\n"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'attention_64' for 'sm_90'
ptxas info    : Function properties for attention_64
    8 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 8 bytes cumulative stack size, 18432 bytes smem
ptxas info    : Compile time = 138.800 ms
ptxas info    : Compiling entry function 'rope_f32' for 'sm_90'
ptxas info    : Function properties for rope_f32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers
";

    #[test]
    fn ptxas_s_report_is_read() {
        let report = report(REPORT);
        assert_eq!(report["rope_f32"], Takes { registers: 24, shared: 0, spilled: 0 });
        assert_eq!(report["attention_64"], Takes { registers: 128, shared: 18432, spilled: 24 });
    }

    #[test]
    fn a_spill_and_a_wrong_number_are_named() {
        let source = "// | kernel | threads |\n// |---|---|\n// | attention_64 | 128 | 128 | 18432 | 4 | 16 |\n// | gone | 128 | 1 | 0 | 16 | 64 |\n";
        let found = differences(&table(source), &report(REPORT));
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].contains("attention_64 spills"), "{found:?}");
        assert!(found[2].contains("rope_f32 is not in the table"), "{found:?}");
        assert!(found[3].contains("gone is in the table"), "{found:?}");
        let wrong = "// | rope_f32 | 256 | 24 | 0 | 7 | 56 |\n";
        let found = differences(&table(wrong), &report(REPORT));
        assert!(found.iter().any(|what| what.contains("holds 8 blocks")), "{found:?}");
    }

    /// The same numbers as NVIDIA's occupancy calculator has for these.
    #[test]
    fn blocks_are_held_by_registers_shared_memory_or_warps() {
        let of =
            |threads, registers, shared| blocks(threads, Takes { registers, shared, spilled: 0 });
        assert_eq!(of(256, 24, 0), 8, "warps");
        assert_eq!(of(128, 168, 9472), 3, "registers: 12 warps of 5,376");
        assert_eq!(of(128, 255, 8832), 2, "registers: 8 warps of 8,192");
        assert_eq!(of(128, 32, 100 << 10), 2, "shared memory");
        assert_eq!(of(32, 16, 0), 32, "blocks");
    }

    /// Beside the kernels stands what follows from their registers and shared memory.
    #[test]
    fn the_tables_in_the_sources_are_right() {
        for name in SOURCES {
            let path = format!("{}/../ops/src/cuda/kernels/{name}.cu", env!("CARGO_MANIFEST_DIR"));
            let source = std::fs::read_to_string(path).unwrap();
            let table = table(&source);
            assert!(table.len() >= 8, "{name}: {}", table.len());
            let report = table.iter().map(|(kernel, line)| (kernel.clone(), line.takes)).collect();
            assert_eq!(differences(&table, &report), Vec::<String>::new(), "{name}");
        }
    }
}
