//! The places where a model lets others compute: after its sublayers, before the tokens, before the
//! keys and values; in every family.

use std::sync::Arc;

use tunebook_models::{
    Branch, Device, Flow, GenerationConfig, KeysValues, Model, Result, Sublayer, Tensor, Vectors,
    rows,
};

use crate::families::{FAMILIES, load};

const IDS: [u32; 9] = [5, 17, 3, 42, 8, 29, 11, 2, 30];

fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    model.forward(&ids).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference, relative to the largest value expected.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    found.iter().zip(expected).fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

#[derive(Debug)]
struct Fixed(Tensor);

impl Vectors for Fixed {
    fn vectors(&self) -> Result<Tensor> {
        Ok(self.0.clone())
    }

    fn count(&self) -> usize {
        self.0.dims()[0]
    }
}

#[derive(Debug)]
struct Pair(Tensor, Tensor);

impl KeysValues for Pair {
    fn keys_values(&self) -> Result<(Tensor, Tensor)> {
        Ok((self.0.clone(), self.1.clone()))
    }

    fn count(&self) -> usize {
        self.0.dims()[0]
    }
}

#[derive(Debug)]
struct Scaled {
    stream: f64,
    output: f64,
}

impl Branch for Scaled {
    fn forward(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok(((y * self.output)? + (x * self.stream)?)?)
    }
}

fn random(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu).unwrap()
}

/// A prefix for every block, of `n` positions.
fn put_past(model: &Model, n: usize) {
    for past in model.pasts() {
        let shape = (n, past.heads(), past.head_dim());
        past.replace(Arc::new(Pair(random(shape), random(shape))));
    }
}

#[test]
fn embeddings_of_tokens_before_the_tokens_are_those_tokens() {
    for (name, _) in FAMILIES {
        let model = load(name);
        let whole = logits(&model, &IDS);
        let begin = Tensor::new(&IDS[..3], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        model.front().replace(Arc::new(Fixed(model.embed(&begin).unwrap().squeeze(0).unwrap())));
        let vocab = whole.len() / IDS.len();
        let rest = logits(&model, &IDS[3..]);
        assert!(error(&rest, &whole[3 * vocab..]) < 1e-5, "{name}");
        let config = GenerationConfig { max_new_tokens: 12, ..Default::default() };
        let after = model.generate_ids(&[IDS[3..].to_vec()], &config).unwrap();
        model.front().restore();
        assert_eq!(after, model.generate_ids(&[IDS.to_vec()], &config).unwrap(), "{name}");
        assert_eq!(logits(&model, &IDS), whole, "{name}");
    }
}

#[test]
fn a_batch_of_different_lengths_gives_what_each_row_gives_alone() {
    let prompts: Vec<Vec<u32>> = [&IDS[..], &IDS[4..], &IDS[7..]].map(<[u32]>::to_vec).into();
    let config = GenerationConfig { max_new_tokens: 20, ..Default::default() };
    for (name, _) in FAMILIES {
        let model = load(name);
        let hidden = model.config().hidden_size;
        let base = model.generate_ids(&prompts, &config).unwrap();
        let check = |what: &str| {
            let together = model.generate_ids(&prompts, &config).unwrap();
            assert_ne!(together, base, "{name}: {what} changes nothing");
            for (row, prompt) in prompts.iter().enumerate() {
                let alone = model.generate_ids(std::slice::from_ref(prompt), &config).unwrap();
                assert_eq!(together[row], alone[0], "{name}: {what}, row {row}");
                // With the cache as without it.
                let mut ids = prompt.clone();
                let context = model.config().max_position_embeddings;
                for id in alone[0].iter().take(context - model.positions_before() - ids.len()) {
                    let last = logits(&model, &ids);
                    let last = &last[last.len() - model.config().vocab_size..];
                    let likeliest =
                        last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
                    assert_eq!(
                        likeliest as u32,
                        *id,
                        "{name}: {what}, row {row}, after {} tokens",
                        ids.len()
                    );
                    ids.push(*id);
                }
            }
        };
        model.front().replace(Arc::new(Fixed((random((4, hidden)) * 0.5).unwrap())));
        check("a front");
        model.front().restore();
        put_past(&model, 4);
        if model.pasts().is_empty() {
            assert_eq!(*name, "falcon-40b");
        } else {
            check("a past");
        }
        model.pasts().iter().for_each(|past| past.restore());
        assert_eq!(model.generate_ids(&prompts, &config).unwrap(), base, "{name}");
    }
}

#[test]
fn sublayers_are_named_and_what_stands_after_them_is_used() {
    for (name, _) in FAMILIES {
        let model = load(name);
        let base = logits(&model, &IDS);
        let joints = model.joints();
        let found: Vec<(usize, Sublayer)> = joints
            .iter()
            .map(|joint| (model.block_of(joint.path()).unwrap(), joint.sublayer()))
            .collect();
        let wanted =
            [0, 1].map(|block| [(block, Sublayer::Attention), (block, Sublayer::FeedForward)]);
        assert_eq!(found, wanted.concat(), "{name}");
        for joint in joints {
            joint.replace(Arc::new(Scaled { stream: 0.0, output: 1.0 }));
            assert_eq!(logits(&model, &IDS), base, "{name}: {}", joint.path());
            joint.replace(Arc::new(Scaled { stream: 0.0, output: 0.5 }));
            assert!(
                error(&logits(&model, &IDS), &base) > 1e-4 || joint.flow() == Flow::Normed,
                "{name}: {}",
                joint.path()
            );
            joint.replace(Arc::new(Scaled { stream: 0.3, output: 1.0 }));
            assert!(error(&logits(&model, &IDS), &base) > 1e-3, "{name}: {}", joint.path());
            joint.restore();
        }
        assert_eq!(logits(&model, &IDS), base, "{name}");
    }
}

/// After the feed-forward network the output is doubled where the stream before it is added again:
/// `x + (y + x)` is `2·(x + y) - y`.
#[test]
fn a_branch_sees_the_stream_that_its_sublayer_read() {
    /// Keeps what it was shown.
    #[derive(Debug, Default)]
    struct Seen(std::sync::Mutex<Option<(Tensor, Tensor)>>);
    impl Branch for Seen {
        fn forward(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
            *self.0.lock().unwrap() = Some((x.clone(), y.clone()));
            Ok(y.clone())
        }
    }
    for (name, _) in FAMILIES {
        let model = load(name);
        let ids = Tensor::new(&IDS, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let positions = model.positions(1, IDS.len()).unwrap();
        let x = model.put_front(&model.embed(&ids).unwrap()).unwrap();
        // What GPT-2 adds to it belongs to its first block.
        let x = if *name == "gpt2" { model.block_forward(0, &x, &positions).unwrap() } else { x };
        let block = usize::from(*name == "gpt2");
        let seen: Vec<Arc<Seen>> = model.joints()[2 * block..2 * block + 2]
            .iter()
            .map(|joint| {
                let seen = Arc::new(Seen::default());
                joint.replace(seen.clone());
                seen
            })
            .collect();
        let y = model.block_forward(block, &x, &positions).unwrap();
        let take = |seen: &Arc<Seen>| seen.0.lock().unwrap().take().unwrap();
        let ((x_attention, attended), (x_mlp, fed)) = (take(&seen[0]), take(&seen[1]));
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&x_attention), flat(&x), "{name}");
        match model.joints()[0].flow() {
            Flow::Sequential => {
                assert!(error(&flat(&(&x + &attended).unwrap()), &flat(&x_mlp)) < 1e-5, "{name}");
                assert!(error(&flat(&(&x_mlp + &fed).unwrap()), &flat(&y)) < 1e-5, "{name}");
            }
            Flow::Parallel => {
                assert_eq!(flat(&x_mlp), flat(&x), "{name}");
                assert!(
                    error(&flat(&((&x + &attended).unwrap() + &fed).unwrap()), &flat(&y)) < 1e-5,
                    "{name}"
                );
            }
            Flow::Normed => {
                assert!(
                    error(&flat(&(&x + &attended).unwrap()), &flat(&x_mlp)) > 1e-3,
                    "{name}: the norm is between"
                );
            }
        }
    }
}

#[test]
fn what_stands_before_a_text_takes_its_part_of_the_context() {
    let model = load("llama3");
    let (context, hidden) = (model.config().max_position_embeddings, model.config().hidden_size);
    model.front().replace(Arc::new(Fixed(random((4, hidden)))));
    put_past(&model, 3);
    assert_eq!(model.positions_before(), 7);
    let long = vec![3u32; context - 6];
    let message = model
        .forward(&Tensor::new(long, &Device::Cpu).unwrap().unsqueeze(0).unwrap())
        .unwrap_err()
        .to_string();
    assert!(message.starts_with(&format!("{} tokens are longer", context + 1)), "{message}");
    let config = GenerationConfig::default();
    assert!(model.generate_ids(&[vec![3; context - 7]], &config).is_err());
    let most = model.generate_ids(&[vec![3; context - 9]], &config).unwrap();
    assert!(most[0].len() <= 2);
    let message = model.packed_positions(8, &[vec![4, 4]]).unwrap_err().to_string();
    assert!(message.contains("virtual tokens"), "{message}");
    model.front().replace(Arc::new(Fixed(random((4, hidden + 1)))));
    let ids = Tensor::new(&[[1u32]], &Device::Cpu).unwrap();
    let message = model.forward(&ids).unwrap_err().to_string();
    assert!(message.contains(&format!("[{}]", hidden + 1)), "{message}");
}

/// The prompts of a batch are put together by length, and rows leave it: a layer is told which
/// prompt each row belongs to.
#[test]
fn a_layer_knows_which_prompt_a_row_is_of() {
    /// Adds to the output what its prompt is to get.
    #[derive(Debug)]
    struct ByText;
    impl Branch for ByText {
        fn forward(&self, _: &Tensor, y: &Tensor) -> Result<Tensor> {
            let Some(texts) = rows::current() else { return Ok(y.clone()) };
            let factors: Vec<f32> = texts.iter().map(|text| 1.0 + *text as f32).collect();
            let factors = Tensor::from_vec(factors, (texts.len(), 1, 1), y.device())?;
            Ok(y.broadcast_mul(&factors)?)
        }
    }
    let model = load("mistral");
    let prompts: Vec<Vec<u32>> =
        [&IDS[7..], &IDS[..], &IDS[2..5], &IDS[4..]].map(<[u32]>::to_vec).into();
    let config = GenerationConfig { max_new_tokens: 16, batch_size: 3, ..Default::default() };
    model.joints()[1].replace(Arc::new(ByText));
    let together = model.generate_ids(&prompts, &config).unwrap();
    for (text, prompt) in prompts.iter().enumerate() {
        model.joints()[1].replace(Arc::new(Scaled { stream: 0.0, output: 1.0 + text as f64 }));
        assert_eq!(
            together[text],
            model.generate_ids(std::slice::from_ref(prompt), &config).unwrap()[0],
            "prompt {text}"
        );
    }
}
