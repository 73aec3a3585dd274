//! A model in a table: its shape, its size and its adapters.

use tunebook_charts::{Cell, Table, format_number};
use tunebook_models::Model;
use tunebook_tune::{AdapterInfo, Adapters as _};

/// What there is to say about a model.
pub trait Summary {
    /// Shape, parameters, memory, and each adapter with what it trains.
    fn summary(&self) -> Table;
}

impl Summary for Model {
    fn summary(&self) -> Table {
        let config = self.config();
        let mut table = Table::new(["", "value"]).caption(self.name());
        let mut line = |name: &str, value: Cell| table.row([Cell::from(name), value]);
        line("architecture", Cell::Right(config.model_type.clone()));
        line("parameters", self.parameter_count().into());
        line(
            "memory of the weights",
            Cell::Right(format!("{:.0} MB", self.memory_bytes() as f64 / 1e6)),
        );
        line("blocks", config.num_hidden_layers.into());
        line("hidden size", config.hidden_size.into());
        line(
            "attention heads",
            Cell::Right(format!(
                "{} ({} key/value)",
                config.num_attention_heads, config.num_key_value_heads
            )),
        );
        line("vocabulary", config.vocab_size.into());
        line("context", Cell::Right(format!("{} tokens", config.max_position_embeddings)));
        line(
            "chat template",
            Cell::Right(if self.chat_template().is_some() { "yes" } else { "no" }.into()),
        );
        line("device", Cell::Right(format!("{:?}", self.device().location())));
        for adapter in self.adapters() {
            let name = format!("adapter {}{}", adapter.name, state(&adapter));
            let share =
                100.0 * adapter.trainable_parameters as f64 / adapter.all_parameters.max(1) as f64;
            let count = format_number(adapter.trainable_parameters as f64);
            line(&name, Cell::Right(format!("{count} trainable ({share:.2} %)")));
        }
        table
    }
}

/// Whether an adapter answers, and how, behind its name.
fn state(info: &AdapterInfo) -> &'static str {
    match (info.active, info.merged) {
        (_, true) => " (active, merged)",
        (true, false) => " (active)",
        (false, false) => "",
    }
}

/// One adapter in a table.
pub(crate) fn adapter(info: &AdapterInfo) -> Table {
    let caption = format!("adapter {}{}", info.name, state(info));
    let mut table = Table::new(["", "value"]).caption(caption);
    let share = 100.0 * info.trainable_parameters as f64 / info.all_parameters.max(1) as f64;
    let mut line = |name: &str, value: Cell| table.row([Cell::from(name), value]);
    for (name, value) in info.config.fields() {
        line(name, Cell::Right(value));
    }
    line("modules", info.modules.len().into());
    line("trainable parameters", info.trainable_parameters.into());
    line("all parameters", info.all_parameters.into());
    line("trainable share", Cell::Right(format!("{share:.3} %")));
    info.warnings.iter().fold(table, |table, warning| table.note(format!("warning: {warning}")))
}
