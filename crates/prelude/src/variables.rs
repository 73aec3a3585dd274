//! The variables that live on between cells: what evcxr puts into the source of every cell,
//! compiled once.
//!
//! evcxr's own module of this kind (`evcxr_internal_runtime.rs`, whose names and meanings these
//! are) is part of each cell, and compiling its hash map anew took half of the time of a short
//! cell. Our kernel puts a `use` of this module in its place. The store is evcxr's in memory, too,
//! so cells that were compiled without the prelude can share it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;

use tunebook_progress::channel::{Frame, NONCE_VAR};

/// evcxr's word for a variable whose type was defined anew.
pub const VARIABLE_CHANGED_TYPE: &str = "EVCXR_VARIABLE_CHANGED_TYPE:";
/// evcxr's word for a `?` that has left the cell.
pub const USER_ERROR_OCCURRED: &str = "EVCXR_ERROR_OCCURRED";

/// The variables by name.
///
/// The name that a cell gives may end in `@` and a number: the kernel's for the definitions that the
/// type is made of, which a `TypeId` does not cover. It is kept beside the variable, under the name
/// with the `@`.
#[derive(Default)]
pub struct VariableStore {
    variables: HashMap<String, Box<dyn Any + 'static>>,
}

// A cell's panic is caught where the cell ends, and these end a cell that evcxr should not have let
// run.
#[allow(clippy::panic)]
impl VariableStore {
    /// Keeps a variable.
    pub fn put_variable<T: 'static>(&mut self, name: &str, value: T) {
        self.put(name, Box::new(value));
    }

    /// Keeps the old value of a variable that the cell should have given a new one, if it has not:
    /// the cell has failed before. Says so to the kernel.
    pub fn keep_variable<T: 'static>(&mut self, name: &str, value: T) {
        if self.lacks(name) {
            self.put(name, Box::new(value));
            tell(&Frame::Kept(parts(name).0.to_owned()));
        }
    }

    /// Says to the kernel that the cell has not stored a variable of its own, if so: it has ended
    /// before.
    pub fn expect_variable(&self, name: &str) {
        if self.lacks(name) {
            tell(&Frame::LeftOut(parts(name).0.to_owned()));
        }
    }

    /// Whether a variable is there and has the type `T` still; says so to the user and to evcxr when
    /// not.
    pub fn check_variable<T: 'static>(&mut self, name: &str) -> bool {
        self.check(name, TypeId::of::<T>())
    }

    /// Takes a variable out.
    ///
    /// # Panics
    /// It is not there, or of another type: evcxr has asked [`VariableStore::check_variable`]
    /// before.
    pub fn take_variable<T: 'static>(&mut self, name: &str) -> T {
        let value = Box::into_raw(self.take(name, TypeId::of::<T>()));
        // SAFETY: `take` has compared the types, and the box owns the value. (`downcast` would be
        // compiled in every cell.)
        unsafe { *Box::from_raw(value.cast::<T>()) }
    }

    /// A value that all cells share, made by the first that asks for it.
    ///
    /// # Panics
    /// There is one of this name and another type.
    pub fn lazy_arc<T: 'static, F: FnOnce() -> T>(&mut self, name: &str, create: F) -> Arc<T> {
        let make = || Box::new(Arc::new(create())) as Box<dyn Any>;
        let value = self.variables.entry(name.to_owned()).or_insert_with(make);
        match value.downcast_ref::<Arc<T>>() {
            Some(value) => Arc::clone(value),
            None => panic!("lazy_arc {name} changed type"),
        }
    }

    /// Takes over all variables of another store.
    pub fn merge(&mut self, other: Self) {
        self.variables.extend(other.variables);
    }

    // What follows is compiled here and not in the cells.

    #[inline(never)]
    fn put(&mut self, name: &str, value: Box<dyn Any>) {
        let (name, number) = parts(name);
        match number {
            Some(number) => {
                self.variables.insert(format!("{name}{BETWEEN}"), Box::new(number.to_owned()))
            }
            None => self.variables.remove(&format!("{name}{BETWEEN}")),
        };
        self.variables.insert(name.to_owned(), value);
    }

    #[inline(never)]
    fn lacks(&self, name: &str) -> bool {
        !self.variables.contains_key(parts(name).0)
    }

    #[inline(never)]
    fn check(&mut self, name: &str, wanted: TypeId) -> bool {
        let (name, number) = parts(name);
        let Some(value) = self.variables.get(name) else {
            // To take it would end the process, and with it all other variables.
            tell_lost(name, "is not there any more");
            return false;
        };
        let kept = self.variables.get(&format!("{name}{BETWEEN}"));
        let kept = kept.and_then(|number| number.downcast_ref::<String>());
        let same = (**value).type_id() == wanted && kept.map(String::as_str) == number;
        if !same {
            tell_lost(name, "is lost, as its type was defined anew");
        }
        same
    }

    #[inline(never)]
    fn take(&mut self, name: &str, wanted: TypeId) -> Box<dyn Any> {
        let (name, _) = parts(name);
        self.variables.remove(&format!("{name}{BETWEEN}"));
        match self.variables.remove(name) {
            Some(value) if (*value).type_id() == wanted => value,
            Some(_) => panic!("Variable changed type"),
            None => panic!("Variable '{name}' has gone missing"),
        }
    }
}

/// Stands between a variable's name and the number of its type.
const BETWEEN: char = '@';

fn parts(name: &str) -> (&str, Option<&str>) {
    name.split_once(BETWEEN).map_or((name, None), |(name, number)| (name, Some(number)))
}

fn tell_lost(name: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "The variable {name} {why}.");
    tell(&Frame::Changed(name.to_owned()));
}

fn tell(frame: &Frame) {
    let nonce = std::env::var(NONCE_VAR).unwrap_or_default();
    let _ = std::io::stdout().write_all(&frame.encode(&nonce));
}

/// An empty store, which lives as long as the process.
#[inline(never)]
pub fn create_variable_store() -> *mut VariableStore {
    Box::into_raw(Box::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_live_on() {
        let mut store = VariableStore::default();
        store.put_variable("words", vec!["lora".to_owned()]);
        store.put_variable("nothing", ());
        assert!(
            store.check_variable::<Vec<String>>("words") && !store.check_variable::<u8>("unknown")
        );
        assert_eq!(store.take_variable::<Vec<String>>("words"), ["lora"]);
        store.take_variable::<()>("nothing");
        let first = store.lazy_arc("shared", || 1);
        assert!(Arc::ptr_eq(&first, &store.lazy_arc("shared", || 2)));
        let mut other = VariableStore::default();
        other.put_variable("more", 5u8);
        store.merge(other);
        assert_eq!(store.take_variable::<u8>("more"), 5);
    }

    #[test]
    fn an_old_value_is_kept_where_there_is_no_new_one() {
        let mut store = VariableStore::default();
        store.keep_variable("model@7", 1u8);
        assert!(store.check_variable::<u8>("model@7"));
        store.keep_variable("model@7", 2u8);
        assert_eq!(store.take_variable::<u8>("model@7"), 1);
    }

    #[test]
    fn a_variable_of_another_type_is_neither_right_nor_taken() {
        let mut store = VariableStore::default();
        store.put_variable("count", 1i32);
        assert!(!store.check_variable::<u32>("count"));
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            store.take_variable::<u32>("count")
        }));
        assert!(taken.is_err());
    }

    #[test]
    fn a_variable_whose_type_was_defined_anew_is_not_given_back() {
        let mut store = VariableStore::default();
        store.put_variable("setting@0a", 3u32);
        assert!(store.check_variable::<u32>("setting@0a"));
        assert!(!store.check_variable::<u32>("setting@0b"));
        assert!(!store.check_variable::<u32>("setting"));
        assert_eq!(store.take_variable::<u32>("setting@0a"), 3);
        store.put_variable("setting", 4u32);
        assert!(
            store.check_variable::<u32>("setting") && !store.check_variable::<u32>("setting@0a")
        );
        assert!(!store.check_variable::<u32>("unknown@0a"));
    }

    /// Cells that were compiled without the prelude have evcxr's own store.
    #[test]
    fn the_store_is_evcxrs_in_memory() {
        type Evcxrs = HashMap<String, Box<dyn Any>>;
        assert_eq!(size_of::<VariableStore>(), size_of::<Evcxrs>());
        assert_eq!(std::mem::offset_of!(VariableStore, variables), 0);
    }
}
