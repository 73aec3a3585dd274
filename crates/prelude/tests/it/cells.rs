//! What a cell sees after `use tunebook::prelude::*;`.

#![allow(clippy::useless_vec, clippy::needless_borrow)] // as people write cells

use tunebook::prelude::*;

/// Rust's own names mean what they mean without the prelude.
#[test]
fn the_prelude_of_rust_is_not_shadowed() -> Result<(), Box<dyn std::error::Error>> {
    let option: Option<Vec<String>> = Some(vec![String::from("a"), "b".to_owned()]);
    let result: Result<usize, std::num::ParseIntError> = "3".parse::<usize>();
    let boxed: Box<dyn Fn(u8) -> u8> = Box::new(|x| x + 1);
    fn named<T: Clone + Send + Sync + Copy + Default + PartialEq + Eq + Ord + PartialOrd>(
        x: T,
    ) -> T {
        x
    }
    fn moved<I: Iterator<Item = u8> + DoubleEndedIterator + ExactSizeIterator>(
        items: I,
    ) -> Vec<u8> {
        items.rev().collect()
    }
    assert!(matches!(option, Some(ref names) if names.len() == 2) && None::<u8>.is_none());
    assert!(matches!(result, Ok(3)) && "x".parse::<u8>().is_err());
    assert_eq!((boxed(1), named(2), moved([1, 2].into_iter())), (2, 2, vec![2, 1]));
    drop(boxed);
    let text: String = ["a", "b"].into_iter().map(ToString::to_string).collect();
    assert_eq!(AsRef::<str>::as_ref(&text), "ab");
    let converted: u64 = u64::try_from(5i32)?;
    assert_eq!(u64::from(5u8), converted);
    assert_eq!(format!("{:?}", vec![1; 2]), "[1, 1]");
    Ok(())
}

/// polars, candle and plotly are there by their own names.
#[test]
fn frames_tensors_and_plots() -> Result<(), Box<dyn std::error::Error>> {
    let frame = df!["a" => [1, 2, 3], "b" => ["x", "y", "z"]]?;
    let filtered = frame.clone().lazy().filter(col("a").gt(lit(1))).select([col("b")]).collect()?;
    assert_eq!(filtered.height(), 2);
    let tensor = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
    assert_eq!(tensor.matmul(&tensor)?.to_vec2::<f32>()?, [[7., 10.], [15., 22.]]);
    assert_eq!(tensor.dtype(), candle_core::DType::F32);
    let mut plot = Plot::new();
    plot.add_trace(plotly::Scatter::new(vec![1, 2], vec![3, 4]));
    Ok(())
}

/// A trait of ours is implemented, and a function of ours wrapped, with the prelude's names alone.
#[test]
fn signatures_can_be_written_down() -> Result<(), Box<dyn std::error::Error>> {
    struct Losses(Vec<f64>);
    impl Callback for Losses {
        fn on_step(&mut self, record: &StepRecord) -> Result<(), TuneError> {
            self.0.push(record.loss);
            Ok(())
        }
    }
    fn read(path: &str) -> Result<Dataset, DataError> {
        Dataset::read(path)
    }
    fn load(path: &str) -> Result<Model, ModelError> {
        Model::load(path, &Device::Cpu)
    }
    fn line(name: &str, losses: &Losses) -> Line {
        Line::over_steps(name, losses.0.iter().copied())
    }
    let figure = line_chart("t", "step", "loss", &[line("a", &Losses(vec![2.0, 1.0]))]);
    assert!(figure.text().contains("a: 2 → 1"), "{figure}");
    assert!(matches!(read("nowhere.jsonl"), Err(DataError::NotFound { .. })));
    assert!(matches!(load("/nowhere/at/all"), Err(ModelError::NotFound { .. })));
    let pissa = Lora { lora_init: LoraInit::Pissa, ..Default::default() };
    assert_eq!((pissa.lora_init, BASE), (LoraInit::Pissa, "__base__"));
    Ok(())
}

/// Every kind of value of a cell has the method, so that evcxr compiles the cell once.
#[test]
fn values_of_any_kind_can_end_a_cell() -> Result<(), Box<dyn std::error::Error>> {
    #[derive(Debug)]
    struct Own<'a>(#[allow(dead_code)] &'a str);
    let dataset = Dataset::from_rows(&[("Hi", "Hello"), ("Bye", "See you")]);
    let name = String::from("local");
    ().evcxr_display();
    1.evcxr_display();
    "text".evcxr_display();
    Own(&name).evcxr_display();
    (&name).evcxr_display();
    [1.5, 2.5].evcxr_display();
    vec![Some(1), None].evcxr_display();
    vec![1, 2, 3].iter().max().evcxr_display();
    dataset.evcxr_display();
    (&dataset).evcxr_display();
    dataset.frame().evcxr_display();
    dataset.profile().evcxr_display();
    dataset.clean(&Cleaning::standard())?.report().evcxr_display();
    Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?.evcxr_display();
    Ok(())
}

#[test]
fn texts_beside_each_other() {
    let questions = ["Where is it?".to_owned(), "And the other one?".to_owned()];
    let (before, after) =
        (["It is.".to_owned()], ["On its way.".to_owned(), "There, too.".to_owned()]);
    let table = side_by_side(&["question", "before", "after"], &[&questions, &before, &after]);
    insta::assert_snapshot!(table.text());
}

/// A run's small multiples name the rows of each step, also of a record that has come through JSON;
/// runs over each other are taken as a notebook holds them.
#[test]
fn curves_show_what_a_run_did_and_several_runs_are_drawn_together()
-> Result<(), Box<dyn std::error::Error>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/lora_tiny/model");
    let model = Model::load(path, &Device::Cpu)?;
    let pairs: Vec<Example> =
        (0..8).map(|i| Example::new(format!("{i}"), format!("{}", i * 3))).collect();
    let train = |name: &str, learning_rate: f64| -> Result<Run, TuneError> {
        model.add_adapter(name, Lora::default())?;
        model.set_adapter(name)?;
        let eval_strategy = EvalStrategy::Steps(2);
        let args = TrainingArgs { epochs: 4, learning_rate, eval_strategy, ..Default::default() };
        Trainer::new(&model, &args).train((&pairs, &pairs[..2]))
    };
    let (slow, fast) = (train("slow", 1e-4)?, train("fast", 1e-2)?);

    let record: RunRecord = serde_json::from_str(&serde_json::to_string(slow.record())?)?;
    let figure = record.curves();
    for part in ["gradient norm: ", "learning rate: ", "tokens/s: ", &slow.diagnosis().to_string()]
    {
        assert!(figure.text().contains(part), "{part}: {figure}");
    }
    assert_eq!(figure.text().contains("memory (GB): "), cfg!(target_os = "linux"));
    let bundle = figure.bundle();
    let html = bundle.get("text/html").and_then(|html| html.as_str()).unwrap_or_default();
    let rows: Vec<String> = slow.steps[2].rows.iter().map(ToString::to_string).collect();
    let told = format!("rows {}\"", rows.join(", "));
    assert!(rows.len() == 4 && html.contains(&told), "{told}");
    assert_eq!(slow.history()?.column("memory_bytes")?.len(), slow.steps.len());

    let figure = compare_runs(&[("1e-4", &slow), ("1e-2", &fast), ("read", &record)]);
    let best = fast.best_eval().map_or(0, |eval| eval.step);
    let named = figure.text().lines().filter(|line| line.contains("(best ")).count();
    assert_eq!(named, 3, "{figure}");
    let fast = figure.text().lines().find(|line| line.starts_with("1e-2")).unwrap_or_default();
    assert!(fast.contains(&format!("at step {best})")), "{figure}");
    assert_eq!(figure.svg().matches("stroke-dasharray").count(), 3, "a training loss each");
    Ok(())
}

/// Points of one metric on the same rows make a chart, others are refused by name.
#[test]
fn a_score_is_drawn_against_forgetting() -> Result<(), Box<dyn std::error::Error>> {
    let point = |name: &str, value: f64, forgetting: f64, signature: &str| {
        let score = Score {
            metric: Metric::higher_is_better("accuracy"),
            value,
            interval: Some(Interval { low: value - 0.05, high: value + 0.05, level: 0.95 }),
            rows: 100,
            clusters: None,
            signature: signature.to_owned(),
        };
        let forgetting = Forgetting {
            base_loss: 3.0,
            loss: 3.0 + forgetting,
            forgetting,
            interval: None,
            p_value: 1.0,
            texts: 40,
            tokens: 1000,
            drift: None,
        };
        (name.to_owned(), score, forgetting)
    };
    let points = [
        point("LoRA 5e-5", 0.6, 0.02, "rows a"),
        point("full 2e-4", 0.7, 0.4, "rows a"),
        point("LoRA 2e-4", 0.75, 0.1, "rows a"),
    ];
    let figure = forgetting_chart(&points)?;
    assert!(figure.text().contains("on the frontier: LoRA 5e-5, LoRA 2e-4"), "{figure}");
    let other = [&points[..], &[point("IA3", 0.7, 0.0, "rows b")]].concat();
    let error = forgetting_chart(&other).expect_err("other rows").to_string();
    assert!(error.contains("`IA3`") && error.contains("rows b"), "{error}");
    assert!(forgetting_chart(&[])?.text().contains("0 of 0 points"));
    Ok(())
}

/// The log of a run is one frame: a row for each step, evaluations beside the steps that they
/// follow.
#[test]
fn a_run_s_log_is_a_frame() -> Result<(), Box<dyn std::error::Error>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/lora_tiny/model");
    let model = Model::load(path, &Device::Cpu)?;
    model.add_adapter("a", Lora::default())?;
    let pairs: Vec<Example> =
        (0..8).map(|i| Example::new(format!("{i}"), format!("{}", i * 3))).collect();
    let args = TrainingArgs { epochs: 2, eval_on_start: true, ..Default::default() };
    let trainer = Trainer::new(&model, &args)
        .with_metric(Metric::higher_is_better("length"), |model: &Model| {
            Ok(model.num_blocks() as f64)
        });
    let run = trainer.train((&pairs, &pairs[..2]))?;
    let log = run.history()?;
    assert_eq!(log.height(), 5, "four steps, and the evaluation before them");
    assert_eq!(log.column("eval_loss")?.null_count(), 2);
    assert_eq!(log.column("loss")?.null_count(), 1);
    assert_eq!(log.column("loss")?.f64()?.get(4), Some(run.steps[3].loss));
    assert_eq!(log.column("eval_length")?.f64()?.get(2), Some(2.0));
    let test = LrRangeTest { steps: 12, start: 1e-4, ..Default::default() };
    let figure = trainer.lr_range_test(&pairs, &test)?.curve();
    assert!(figure.svg().contains("learning rate") && figure.svg().contains(">0.01<"));
    Ok(())
}

/// Each verb of a trainer takes a split, a data set or examples, and the same rows make the same run.
#[test]
fn a_trainer_takes_splits_and_examples() -> Result<(), Box<dyn std::error::Error>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/lora_tiny/model");
    let model = Model::load(path, &Device::Cpu)?;
    let rows: Vec<(String, String)> =
        (0..8).map(|i| (i.to_string(), (i * 3).to_string())).collect();
    let rows: Vec<(&str, &str)> = rows.iter().map(|(p, c)| (p.as_str(), c.as_str())).collect();
    let split = Splits::new(Dataset::from_rows(&rows[..6]), Dataset::from_rows(&rows[6..]));
    let (train, held_out) = (split.train.examples(), split.validation.examples());
    let trainer = Trainer::new(&model, &TrainingArgs { epochs: 2, ..Default::default() });
    let mut losses = Vec::new();
    for from_split in [true, false] {
        model.add_adapter("a", Lora::default())?;
        let run =
            if from_split { trainer.train(&split)? } else { trainer.train((&train, &held_out))? };
        losses.push(run.steps.iter().map(|step| step.loss).collect::<Vec<f64>>());
        assert!(!run.evals.is_empty());
        assert_eq!(trainer.resume(&run, &split)?.steps.len(), run.steps.len());
        model.delete_adapter("a")?;
    }
    assert_eq!(losses[0], losses[1]);
    model.add_adapter("a", Lora::default())?;
    let test = LrRangeTest { steps: 12, ..Default::default() };
    assert_eq!(trainer.summary(&split)?.to_string(), trainer.summary(&train)?.to_string());
    assert_eq!(
        trainer.lr_range_test(&split, &test)?.points,
        trainer.lr_range_test(&train, &test)?.points
    );
    assert!(trainer.preflight(&split)?.secs > 0.0);
    assert!(trainer.train(&split.train)?.evals.is_empty());
    Ok(())
}

/// What `see` shows and what training trains on are one: a system message of its own, turns of
/// weight 0 without a loss, and plain texts as they stand.
#[test]
fn rows_are_trained_as_the_model_is_asked() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let file = |name: &str, rows: &str| -> std::io::Result<String> {
        let path = folder.path().join(name);
        std::fs::write(&path, rows)?;
        Ok(path.display().to_string())
    };
    let chats = Dataset::read(&file(
        "chats.jsonl",
        "{\"messages\": [{\"role\": \"system\", \"content\": \"Yo.\"}, {\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}
{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\", \"weight\": 0}, {\"role\": \"user\", \"content\": \"c\"}, {\"role\": \"assistant\", \"content\": \"d\"}]}\n",
    )?)?;
    let rendered = "<|im_start|>user\na<|im_end|>\n";
    let texts = Dataset::read(&file(
        "texts.jsonl",
        &format!("{}\n", serde_json::json!({"text": rendered})),
    )?)?;
    let examples = [chats.examples(), texts.examples()].concat();
    let expected = [
        Example::conversation(vec![
            Message::system("Yo."),
            Message::user("a"),
            Message::assistant("b"),
        ]),
        Example::conversation(vec![
            Message::user("a"),
            Message::assistant("b").untrained(),
            Message::user("c"),
            Message::assistant("d"),
        ]),
        Example::text(rendered),
    ];
    assert_eq!(examples, expected);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/lora_tiny/model");
    let model = Model::load(path, &Device::Cpu)?;
    let args = TrainingArgs { max_length: Some(64), ..TrainingArgs::default() };
    let set = Trainer::new(&model, &args).tokenize(&examples)?;
    for row in &set.examples {
        let seen = model.see_example(&examples[row.row], 64)?;
        let shown = seen.tokens.iter().filter(|token| !token.cut);
        let shown: Vec<(u32, bool)> = shown.map(|token| (token.id, token.trained)).collect();
        let trained = row.ids.iter().zip(&row.labels).map(|(id, label)| (*id, *label >= 0));
        assert_eq!(shown, trained.collect::<Vec<_>>());
    }
    Ok(())
}
