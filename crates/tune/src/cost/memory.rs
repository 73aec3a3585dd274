//! What this process takes of the machine's memory, as Linux counts it. Elsewhere nothing is known.

use std::fs;

use tunebook_models::{Device, Model, gpu_memory};

/// Activations that are kept between the passes may take so many tenths of the size of the weights
/// in f32 before blocks are run again instead. (Of SmolLM2-135M at 1 x 2048 tokens all blocks'
/// activations take 26 tenths: none is run again, and the peak in f32 is 4 times the weights.)
const ACTIVATIONS_TO_WEIGHTS_TENTHS: u64 = 27;
/// Not worth running anything again, however small the model.
const ACTIVATIONS_ALWAYS: u64 = 256 << 20;

/// What the operations on a GPU need while they run, the device's context and the libraries'
/// workspaces: four blocks of attention's scores and three of logits (`ops/device`), and as much
/// again. Set down without a measurement.
const GPU_WORKSPACE: u64 = 2500 << 20;

/// How many of a model's blocks have to be run again for the activations of the others to stay in
/// proportion to the weights.
pub(crate) fn blocks_to_run_again(model: &Model, tokens: usize) -> usize {
    let block = block_bytes(model, tokens).max(1);
    let weights = (model.parameter_count() * size_of::<f32>()) as u64;
    let room = (ACTIVATIONS_TO_WEIGHTS_TENTHS * weights / 10).max(ACTIVATIONS_ALWAYS);
    model.num_blocks().saturating_sub((room / block) as usize)
}

/// A GPU's memory, to a run. Known once for all its batches: to ask the driver costs more than many
/// operations do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GpuRoom {
    /// What the run may take, in bytes.
    pub(crate) most: u64,
    /// Of that, for the trained numbers (unless they are the model's own), their gradients and the
    /// optimizer's state.
    pub(crate) trained: u64,
}

/// What a run may take of a GPU's memory, in bytes: the budget, but no more than 19 twentieths of
/// what is free and of what the run has on the card already (`here`). Other processes' memory, and
/// that of other models, is not its own. `None` where neither is known.
pub(crate) fn gpu_most(budget: Option<u64>, card: Option<(u64, u64)>, here: u64) -> Option<u64> {
    let free = card.map(|(free, total)| free.saturating_add(here).min(total) / 20 * 19);
    budget.into_iter().chain(free).min()
}

/// The same on a GPU.
pub(crate) fn blocks_to_run_again_within(model: &Model, tokens: usize, room: GpuRoom) -> usize {
    let least = blocks_to_run_again(model, tokens);
    let fits = |again: &usize| gpu_bytes(model, tokens, room.trained, *again) <= room.most;
    (least..model.num_blocks()).find(fits).unwrap_or(model.num_blocks())
}

/// What a run takes on a GPU, in bytes, by what its tensors hold: nothing is measured there.
pub(crate) fn gpu_bytes(model: &Model, tokens: usize, trained: u64, again: usize) -> u64 {
    let block = block_bytes(model, tokens);
    let input =
        (tokens * model.config().hidden_size * model.activation_dtype().size_in_bytes()) as u64;
    let kept = (model.num_blocks() - again) as u64 * block + again as u64 * input;
    // The block that the backward pass is at: its activations, if it was run again, and their
    // gradients.
    let at_work = if again > 0 { 2 } else { 1 } * block;
    model.memory_bytes() + trained + kept + at_work + GPU_WORKSPACE
}

/// What a block keeps of so many tokens, in bytes. The operations on a GPU keep what a norm gave
/// the projections, too.
fn block_bytes(model: &Model, tokens: usize) -> u64 {
    let normed = if model.device().is_cpu() { 0 } else { model.config().hidden_size };
    let numbers = block_numbers(model) + normed;
    (tokens * numbers * model.activation_dtype().size_in_bytes()) as u64
}

/// How many numbers a block keeps of a token for its backward pass: the inputs of both norms,
/// queries, keys, values and attention's result, and the two sides of the gate. (What the norms and
/// the gate give is computed again for those that read it.)
pub(crate) fn block_numbers(model: &Model) -> usize {
    let config = model.config();
    let attention = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim;
    2 * config.hidden_size + attention + 2 * config.intermediate_size
}

/// The most that this process has had since [`reset_peak`] (or its start), in bytes.
pub(crate) fn peak_bytes() -> Option<u64> {
    status("VmHWM:")
}

/// The resident memory of this process now, in bytes.
pub(crate) fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// What is in use now, in bytes: the resident memory of this process; on a GPU the device's, of all
/// processes.
pub(crate) fn bytes_in_use(device: &Device) -> Option<u64> {
    if device.is_cpu() {
        return resident_bytes();
    }
    gpu_memory(device).map(|(free, total)| total.saturating_sub(free))
}

/// Resets the counter of [`peak_bytes`]. Where the system refuses it, the counter keeps the peak of
/// the whole process.
pub(crate) fn reset_peak() {
    // What the last pass freed is no part of the next one's peak.
    tunebook_ops::cpu::give_back_freed_memory();
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// The memory that the machine still has free for this process, in bytes.
pub(crate) fn available_bytes() -> Option<u64> {
    field(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

fn status(name: &str) -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, name)
}

/// `Name:   1234 kB`
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The arithmetic alone: no GPU is asked.
    #[test]
    fn on_a_gpu_blocks_are_run_again_until_the_estimate_fits() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/lora_tiny/model");
        let model = Model::load(path, &tunebook_models::Device::Cpu).unwrap();
        let (blocks, tokens, trained) = (model.num_blocks(), 1 << 14, 1 << 20);
        let of = |again| gpu_bytes(&model, tokens, trained, again);
        assert_eq!(blocks, 2);
        // Of a block that is run again its input stays, and while it is at work it is there twice.
        let block = (tokens * block_numbers(&model) * 4) as u64;
        let input = (tokens * 32 * 4) as u64;
        assert_eq!(of(0), model.memory_bytes() + trained + 3 * block + GPU_WORKSPACE);
        assert_eq!(of(2), model.memory_bytes() + trained + 2 * input + 2 * block + GPU_WORKSPACE);
        let within = |most| blocks_to_run_again_within(&model, tokens, GpuRoom { most, trained });
        assert_eq!(within(of(0)), 0);
        assert_eq!(within(of(0) - 1), 2, "one block fewer and one more at work is no gain");
        assert_eq!(within(0), 2);
    }

    #[test]
    fn a_run_may_take_what_is_free_on_the_card_and_what_it_has_there() {
        const GB: u64 = 1_000_000_000;
        let most = |budget, free, total, here| gpu_most(budget, Some((free, total)), here);
        // Alone on the card: nearly all of it.
        assert_eq!(most(None, 66 * GB, 80 * GB, 14 * GB), Some(76 * GB));
        // Beside a process that has half of it.
        assert_eq!(most(None, 26 * GB, 80 * GB, 14 * GB), Some(38 * GB));
        // A budget holds where it is smaller, and cannot make a card larger.
        assert_eq!(most(Some(24 * GB), 66 * GB, 80 * GB, 14 * GB), Some(24 * GB));
        assert_eq!(most(Some(200 * GB), 66 * GB, 80 * GB, 14 * GB), Some(76 * GB));
        // What is here was counted too high.
        assert_eq!(most(None, 70 * GB, 80 * GB, 20 * GB), Some(76 * GB));
        assert_eq!(gpu_most(Some(24 * GB), None, 14 * GB), Some(24 * GB));
        assert_eq!(gpu_most(None, None, 14 * GB), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_buffer_shows_in_the_peak_and_goes() {
        reset_peak();
        let before = peak_bytes().unwrap();
        let buffer = vec![1u8; 64 << 20];
        assert!(std::hint::black_box(&buffer).iter().all(|byte| *byte == 1));
        drop(buffer);
        assert!(peak_bytes().unwrap() > before + (32 << 20));
        assert!(resident_bytes().unwrap() > 0 && available_bytes().unwrap() > 0);
        assert_eq!(field("VmHWM:\t  12 kB\n", "VmHWM:"), Some(12 * 1024));
    }
}
