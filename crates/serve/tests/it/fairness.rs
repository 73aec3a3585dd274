//! Fairness between models: a flood for one does not keep another waiting.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tunebook_models::EngineConfig;
use tunebook_serve::{Limits, ServerConfig};

use crate::support::*;

const PATH: &str = "/v1/completions";

/// One answer at a time, a queue, and the adapter `quiet` beside the base.
fn narrow(max_queue: usize) -> Service {
    let config = ServerConfig {
        limits: Limits { max_queue, ..Default::default() },
        engine: EngineConfig { max_batch_size: 1, ..Default::default() },
        ..Default::default()
    };
    let service = Service::of(model_with_context(40_000), &config);
    service.server.swap("quiet", golden("weighted/one")).unwrap();
    service
}

fn long(model: &str, max_tokens: usize) -> Value {
    json!({
        "model": model, "prompt": "Go", "max_tokens": max_tokens, "temperature": 0,
        "ignore_eos": true,
    })
}

fn waiting(service: &Service) -> f64 {
    service.metric("tunebook_num_requests_waiting")
}

/// With twelve answers of the base before it, the request for the adapter has the second turn.
#[test]
fn a_flood_for_one_model_does_not_keep_another_waiting() {
    let service = narrow(64);
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                service.complete(&long("model", 400));
                answered.fetch_add(1, Ordering::SeqCst);
            });
        }
        wait_for("the flood", Duration::from_secs(20), || waiting(&service) >= 10.0);
        let before = answered.load(Ordering::SeqCst);
        service.complete(&long("quiet", 20));
        let passed = answered.load(Ordering::SeqCst) - before;
        assert!(passed <= 2, "{passed} answers of the flood came first");
    });
    assert_eq!(answered.into_inner(), 12, "and the flood is answered, too");
}

#[test]
fn the_last_places_of_the_queue_are_for_other_models() {
    let service = narrow(8);
    let mut endless = long("model", 30_000);
    endless["stream"] = true.into();
    // 9 places, of which 2 are kept.
    let flood: Vec<_> = (0..7).map(|_| service.send(PATH, &endless)).collect();
    wait_for("the flood", Duration::from_secs(20), || waiting(&service) == 6.0);
    let refused = service.refusal(PATH, &long("model", 4));
    assert_eq!((refused.0, refused.1.as_str()), (429, "queue_full"));
    let quiet = service.send(PATH, &long("quiet", 4));
    wait_for("the other's place", Duration::from_secs(20), || waiting(&service) == 7.0);
    drop((flood, quiet));
    wait_for("room", Duration::from_secs(20), || {
        waiting(&service) + service.metric("tunebook_num_requests_running") == 0.0
    });
    service.complete(&long("model", 4));
}

/// Without adapters there is nobody to keep a place for.
#[test]
fn the_base_alone_has_the_whole_queue() {
    let service = narrow(8);
    service.server.remove("quiet").unwrap();
    let mut endless = long("model", 30_000);
    endless["stream"] = true.into();
    let flood: Vec<_> = (0..9).map(|_| service.send(PATH, &endless)).collect();
    wait_for("the flood", Duration::from_secs(20), || waiting(&service) == 8.0);
    assert_eq!(service.refusal(PATH, &long("model", 4)).0, 429);
    drop(flood);
}
