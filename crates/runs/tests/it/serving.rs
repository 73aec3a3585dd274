//! A server that watches the registry's folder follows promotions and rollbacks.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunebook_runs::Registry;
use tunebook_serve::{EventLog, Serve as _, Server, ServerConfig, Watch};
use tunebook_tune::TrainingArgs;

use crate::common::*;

fn wait_for(server: &Server, generation: &str) {
    let begun = Instant::now();
    let served = || server.adapters().into_iter().find(|adapter| adapter.name == "support");
    while served().map(|adapter| adapter.generation).as_deref() != Some(generation) {
        let late = begun.elapsed() > Duration::from_secs(20);
        assert!(!late, "{generation} is not served, but {:?}", server.adapters());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The fingerprint of an adapter's answers.
fn answering(registry: &Registry, adapter: &str) -> String {
    registry.why(adapter).unwrap().links[0].answering[0].clone()
}

#[test]
fn a_server_follows_promotion_and_rollback_and_loses_no_request() {
    let (_dir, registry) = registry();
    let steps = |steps: usize| TrainingArgs { max_steps: Some(steps), ..args() };
    let (_, short, one) = run_with(&registry, "short", &steps(2));
    let (_, long, two) = run_with(&registry, "long", &steps(40));
    let (first, second) = (answering(&registry, &short), answering(&registry, &long));
    assert_ne!(first, second);
    let comparison = evaluation(&two).compare(&evaluation(&one)).unwrap();
    registry.promote_forced("support", &short, "the first").unwrap();

    // The base that the notebook has trained on is the one that is served.
    let interval = Duration::from_millis(20);
    let watch = Watch { interval, ..Watch::new(registry.serving_folder()) };
    let event_log = Some(EventLog(std::sync::Arc::new(|event| println!("{event}"))));
    let config = ServerConfig { watch: Some(watch), event_log, ..Default::default() };
    let server = two.serve_with("127.0.0.1:0", &config).unwrap();
    wait_for(&server, &first);

    let (seen, going) = (Mutex::new(Vec::new()), AtomicBool::new(true));
    let url = format!("http://{}/v1/completions", server.addr());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let body = json!({
                    "model": "support", "prompt": "Where is it?", "max_tokens": 6, "temperature": 0,
                });
                while going.load(Ordering::Relaxed) {
                    let mut answer = ureq::post(&url).send_json(&body).unwrap();
                    let answer: Value = answer.body_mut().read_json().unwrap();
                    let generation = answer["system_fingerprint"].as_str().unwrap().to_owned();
                    let text = answer["choices"][0]["text"].as_str().unwrap().to_owned();
                    seen.lock().unwrap().push((generation, text));
                }
            });
        }
        for _ in 0..3 {
            registry.promote("support", &long, &comparison).unwrap();
            wait_for(&server, &second);
            std::thread::sleep(Duration::from_millis(100));
            registry.rollback("support").unwrap();
            wait_for(&server, &first);
            std::thread::sleep(Duration::from_millis(100));
        }
        // A refused promotion changes nothing of what is served.
        let worse = evaluation(&one).compare(&evaluation(&two)).unwrap();
        assert!(registry.promote("support", &short, &worse).is_err());
        going.store(false, Ordering::Relaxed);
    });
    let seen = seen.into_inner().unwrap();
    let generations: BTreeSet<&str> =
        seen.iter().map(|(generation, _)| generation.as_str()).collect();
    assert_eq!(generations, BTreeSet::from([first.as_str(), second.as_str()]));
    // Each generation has one answer.
    let answers: BTreeSet<&(String, String)> = seen.iter().collect();
    assert_eq!(answers.len(), 2, "{answers:?}");
    println!("{} requests during 3 promotions and 3 rollbacks, none lost", seen.len());
    server.stop();
}
