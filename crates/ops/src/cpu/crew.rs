//! Threads that loops of the operations are divided among: the calling one and helpers that stay
//! awake between loops.
//!
//! A training step is some hundreds of loops of a millisecond or less with little between them.
//! Handing each to rayon's pool wakes threads twice a loop, puts the calling thread to sleep
//! meanwhile, and wakes it again; here the calling thread works, too, and the helpers look for the
//! next loop for a while before they sleep. Figures: `docs/measurements.md`, "Threads".
//!
//! One loop runs at a time: a caller that finds the helpers at work for somebody else divides its
//! loop by rayon, and a loop inside a loop runs where it is.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rayon::iter::plumbing::{Producer, ProducerCallback};
use rayon::prelude::*;

/// How long a helper looks for the next loop before it goes to sleep.
const AWAKE: Duration = Duration::from_millis(2);
/// How long who waits keeps its core to itself. After it, others may run between two looks: the
/// machine may have more to do than this.
const ALONE: Duration = Duration::from_micros(50);
/// Pieces for each thread that a loop over many small items is cut into.
const PIECES: usize = 12;

/// Runs `task(0)` to `task(count − 1)`, each once, in any order and at the same time.
pub fn run(count: usize, task: impl Fn(usize) + Sync) {
    if count < 2 || threads() < 2 || WORKING.get() {
        return (0..count).for_each(task);
    }
    let crew = crew();
    if crew.taken.swap(true, Acquire) {
        return (0..count).into_par_iter().with_max_len(1).for_each(&task);
    }
    crew.divide(count, &task);
}

/// `rayon`'s `for_each` with these threads.
pub trait Each: IndexedParallelIterator {
    /// Calls `work` with every item.
    fn each(self, work: impl Fn(Self::Item) + Sync) {
        let len = self.len();
        self.with_producer(Pieces { len, work });
    }
}

impl<I: IndexedParallelIterator> Each for I {}

/// How many threads a loop is divided among at most: as many as rayon has.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

struct Pieces<F> {
    len: usize,
    work: F,
}

impl<T, F: Fn(T) + Sync> ProducerCallback<T> for Pieces<F> {
    type Output = ();

    fn callback<P: Producer<Item = T>>(self, producer: P) {
        let Self { len, work } = self;
        let count = len.min(PIECES * threads());
        let mut pieces = Vec::with_capacity(count);
        let mut rest = producer;
        for piece in 0..count.saturating_sub(1) {
            let (first, after) = rest.split_at((piece + 1) * len / count - piece * len / count);
            pieces.push(Mutex::new(Some(first)));
            rest = after;
        }
        pieces.push(Mutex::new(Some(rest)));
        run(pieces.len(), |index| {
            if let Some(piece) = lock(&pieces[index]).take() {
                piece.into_iter().for_each(&work);
            }
        });
    }
}

thread_local! {
    /// Whether this thread is inside a loop of the crew's.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

type Task<'a> = dyn Fn(usize) + Sync + 'a;

struct Crew {
    /// Somebody's loop is being run.
    taken: AtomicBool,
    /// Goes up when a loop is opened to the helpers and when it is closed: odd while one is open.
    turn: AtomicUsize,
    /// Helpers that look at the open loop or work on it.
    inside: AtomicUsize,
    /// The next task of the loop.
    next: AtomicUsize,
    work: UnsafeCell<Option<(*const Task<'static>, usize)>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    asleep: AtomicUsize,
    bed: Mutex<()>,
    call: Condvar,
}

// SAFETY: `work` is written by the caller that has taken the crew while the loop is closed and
// nobody is inside, and read by helpers inside an open loop only. What it points to is `Sync` and
// outlives the loop: `divide` returns when nobody is inside any more.
unsafe impl Sync for Crew {}
// SAFETY: as above.
unsafe impl Send for Crew {}

fn crew() -> &'static Crew {
    static CREW: OnceLock<Crew> = OnceLock::new();
    CREW.get_or_init(|| {
        for helper in 1..threads() {
            // With fewer helpers, or none, loops take longer and are the same. (A helper waits here
            // for the crew to be there.)
            let _ =
                thread::Builder::new().name(format!("tunebook-{helper}")).spawn(|| crew().help());
        }
        Crew {
            taken: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            panic: Mutex::new(None),
            asleep: AtomicUsize::new(0),
            bed: Mutex::new(()),
            call: Condvar::new(),
        }
    })
}

impl Crew {
    /// The loop of a caller that has taken the crew.
    fn divide(&self, count: usize, task: &Task<'_>) {
        let work: *const Task<'_> = task;
        // SAFETY: only the lifetime is changed; nobody uses the pointer after this function, see
        // below.
        let work: *const Task<'static> = unsafe { std::mem::transmute(work) };
        self.next.store(0, Relaxed);
        // SAFETY: the last loop is closed and nobody is inside.
        unsafe { *self.work.get() = Some((work, count)) };
        self.turn.fetch_add(1, SeqCst);
        if self.asleep.load(SeqCst) > 0 {
            let _bed = lock(&self.bed);
            self.call.notify_all();
        }
        let mine = self.work_through(task, count);
        self.turn.fetch_add(1, SeqCst);
        // Who has seen the loop open counted itself before it looked, so it is counted here.
        let mut wait = Wait::new();
        while self.inside.load(SeqCst) > 0 {
            wait.pause();
        }
        let theirs = lock(&self.panic).take();
        self.taken.store(false, SeqCst);
        if let Some(panic) = mine.or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Takes tasks until there are none left. A panic ends the loop for all and is given back.
    fn work_through(&self, task: &Task<'_>, count: usize) -> Option<Box<dyn Any + Send>> {
        WORKING.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Relaxed);
                if index >= count {
                    break;
                }
                task(index);
            }
        }));
        WORKING.set(false);
        let panic = outcome.err()?;
        self.next.store(count, Relaxed);
        Some(panic)
    }

    /// What a helper does all its life.
    fn help(&self) {
        let (mut seen, mut wait) = (0, Wait::new());
        loop {
            let turn = self.turn.load(Relaxed);
            if turn % 2 == 1 && turn != seen {
                self.inside.fetch_add(1, SeqCst);
                if self.turn.load(SeqCst) == turn {
                    // SAFETY: the loop is open, and this helper counted itself before it saw that:
                    // the caller waits for it.
                    if let Some((task, count)) = unsafe { *self.work.get() }
                        // SAFETY: as above.
                        && let Some(panic) = self.work_through(unsafe { &*task }, count)
                    {
                        *lock(&self.panic) = Some(panic);
                    }
                    (seen, wait) = (turn, Wait::new());
                }
                self.inside.fetch_sub(1, SeqCst);
            } else if wait.pause() >= AWAKE {
                let mut bed = lock(&self.bed);
                self.asleep.fetch_add(1, SeqCst);
                while self.turn.load(SeqCst) == turn {
                    bed = self.call.wait(bed).unwrap_or_else(PoisonError::into_inner);
                }
                self.asleep.fetch_sub(1, SeqCst);
                wait = Wait::new();
            }
        }
    }
}

/// Waiting for what should come any moment.
struct Wait {
    since: Instant,
    looks: usize,
    so_far: Duration,
}

impl Wait {
    fn new() -> Self {
        Self { since: Instant::now(), looks: 0, so_far: Duration::ZERO }
    }

    /// Lets a little time go by; how long it has been.
    fn pause(&mut self) -> Duration {
        if self.so_far < ALONE {
            spin_loop();
        } else {
            thread::yield_now();
        }
        // The clock costs as much as a look.
        self.looks += 1;
        if self.looks.is_multiple_of(8) {
            self.so_far = self.since.elapsed();
        }
        self.so_far
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for count in [0, 1, 2, 3, 100, 1000] {
            for _ in 0..200 {
                let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                run(count, |index| {
                    done[index].fetch_add(1, Relaxed);
                });
                assert!(done.iter().all(|times| times.load(Relaxed) == 1));
            }
        }
    }

    #[test]
    fn every_item_comes_once_and_in_its_place() {
        for len in [0, 1, 5, 23, 24, 25, 1000] {
            let (mut out, add) = (vec![0usize; len], vec![1usize; len]);
            out.par_chunks_mut(3).zip(add.par_chunks(3)).enumerate().each(|(chunk, (out, add))| {
                for (i, (out, add)) in out.iter_mut().zip(add).enumerate() {
                    *out += 3 * chunk + i + add;
                }
            });
            assert!(out.iter().enumerate().all(|(i, found)| *found == i + 1), "{len}: {out:?}");
        }
    }

    #[test]
    fn loops_of_several_threads_and_loops_in_loops_end() {
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        run(10, |_| {
                            run(10, |_| {
                                total.fetch_add(1, Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Relaxed), 4 * 100 * 10 * 10);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_next_loop_is_whole() {
        for bad in 0..20 {
            let outcome = catch_unwind(|| run(20, |index| assert!(index != bad, "task {index}")));
            let message = outcome.unwrap_err();
            assert_eq!(message.downcast_ref::<String>().unwrap(), &format!("task {bad}"));
            let done = AtomicUsize::new(0);
            run(20, |_| {
                done.fetch_add(1, Relaxed);
            });
            assert_eq!(done.load(Relaxed), 20);
        }
    }

    #[test]
    fn helpers_take_part() {
        if threads() < 2 {
            return;
        }
        let who = Mutex::new(std::collections::HashSet::new());
        run(40, |_| {
            lock(&who).insert(thread::current().id());
            thread::sleep(Duration::from_millis(5));
        });
        assert!(lock(&who).len() > 1, "the caller did everything");
    }

    /// Helpers that went to sleep are called.
    #[test]
    fn a_loop_after_a_long_pause_is_whole() {
        for _ in 0..5 {
            thread::sleep(10 * AWAKE);
            let done = AtomicUsize::new(0);
            run(50, |_| {
                done.fetch_add(1, Relaxed);
            });
            assert_eq!(done.load(Relaxed), 50);
        }
    }
}
