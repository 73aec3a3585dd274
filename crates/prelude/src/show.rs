//! How the last expression of a cell is shown.
//!
//! evcxr compiles a cell `EXPR` as `(EXPR).evcxr_display();`, and if that fails a second time with
//! `Debug`. With this trait in scope the first way always compiles, which halves the time of such a
//! cell. Types that have a method of this name themselves (plotly's `Plot`) keep their own.

use std::any::TypeId;
use std::fmt::Debug;

use tunebook_progress::{MimeBundle, result};
use tunebook_serve::Server;

use crate::{live_server, views};

/// Longer plain values are cut: an output of megabytes helps nobody and stalls the front end.
const MAX_CHARS: usize = 50_000;
/// A value with a longer `Debug` form is spread over lines.
const LINE_CHARS: usize = 100;

/// Shows a value as the result of a cell: our own types, frames and tensors as tables and pictures,
/// all others by `Debug`.
pub trait EvcxrDisplay {
    /// Shows it.
    fn evcxr_display(&self);
}

impl<T: Debug> EvcxrDisplay for T {
    fn evcxr_display(&self) {
        // All the work is in a function that is compiled here, once, and not in every cell.
        show(type_id::<T>(), std::ptr::from_ref(self).cast(), self);
    }
}

impl EvcxrDisplay for str {
    fn evcxr_display(&self) {
        result(plain(&self));
    }
}

impl<T: Debug> EvcxrDisplay for [T] {
    fn evcxr_display(&self) {
        result(plain(&self));
    }
}

/// A value whose type is not known here any more.
#[derive(Clone, Copy)]
pub(crate) struct Value<'a> {
    id: TypeId,
    pointer: *const (),
    debug: &'a dyn Debug,
}

/// A type that no other type equals up to lifetimes, so that its [`TypeId`] stands for it alone.
///
/// `'static` does not say so: `&'static str` is `'static`, and [`type_id`] gives its id to every
/// `&'a str`, too. [`without_lifetimes`] lists the types.
///
/// # Safety
/// The type has no lifetime, in its parameters neither: `DataFrame` and `Vec<AdapterInfo>` may have
/// this trait, `&'static str` and `Cow<'static, str>` must not.
pub(crate) unsafe trait WithoutLifetimes: 'static {}

/// Says of each type that it has no lifetime. One that is left out (`Cow<str>`) does not compile.
macro_rules! without_lifetimes {
    ($($type:ty),* $(,)?) => {$(
        // SAFETY: no lifetime is written in the type, and none is left out: an elided one would be
        // any, and the trait asks for `'static`.
        unsafe impl $crate::show::WithoutLifetimes for $type {}
    )*};
}
pub(crate) use without_lifetimes;

impl<'a> Value<'a> {
    /// The value, if it is a `T`, or a reference to one or an `Option` of either.
    pub(crate) fn as_ref<T: WithoutLifetimes>(&self) -> Option<&'a T> {
        // `pointer` comes from a reference that lives for 'a, to a value of the type with this id up
        // to lifetimes.
        if self.id == TypeId::of::<T>() {
            // SAFETY: `T` has no lifetime, so the value is a `T`.
            return Some(unsafe { &*self.pointer.cast::<T>() });
        }
        if self.id == TypeId::of::<Option<T>>() {
            // SAFETY: as above.
            return unsafe { &*self.pointer.cast::<Option<T>>() }.as_ref();
        }
        if self.id == TypeId::of::<&'static T>() {
            // SAFETY: as above, and a reference within the value outlives 'a.
            return Some(unsafe { *self.pointer.cast::<&'a T>() });
        }
        if self.id == TypeId::of::<Option<&'static T>>() {
            // SAFETY: as above.
            return unsafe { *self.pointer.cast::<Option<&'a T>>() };
        }
        None
    }
}

fn show(id: TypeId, pointer: *const (), debug: &dyn Debug) {
    // A cell that ends in a statement's `()` shows nothing.
    if id == TypeId::of::<()>() {
        return;
    }
    let value = Value { id, pointer, debug };
    match value.as_ref::<Server>() {
        Some(server) => live_server::show(server), // and goes on showing it
        None => result(bundle(value)),
    }
}

/// The forms of a value.
pub(crate) fn bundle(value: Value<'_>) -> MimeBundle {
    views::view(&value).unwrap_or_else(|| plain(value.debug))
}

fn plain(value: &dyn Debug) -> MimeBundle {
    let mut text = format!("{value:?}");
    // A struct reads better over several lines; a long list of numbers does not.
    if text.chars().nth(LINE_CHARS).is_some() && text.contains(" { ") {
        text = format!("{value:#?}");
    }
    if let Some((at, _)) = text.char_indices().nth(MAX_CHARS) {
        let more = text[at..].chars().count();
        text.truncate(at);
        text.push_str(&format!("… ({more} more characters)"));
    }
    MimeBundle::text(text)
}

/// The id of a type with its lifetimes erased, which exists for every type (`TypeId::of` asks for
/// `'static`).
fn type_id<T: ?Sized>() -> TypeId {
    trait Erased {
        fn id(&self) -> TypeId
        where
            Self: 'static;
    }
    impl<T: ?Sized> Erased for std::marker::PhantomData<T> {
        fn id(&self) -> TypeId
        where
            Self: 'static,
        {
            TypeId::of::<T>()
        }
    }
    let phantom = std::marker::PhantomData::<T>;
    let erased: &dyn Erased = &phantom;
    // SAFETY: the two types differ in a lifetime bound only; the method reads no data, and ids do
    // not depend on lifetimes.
    let erased = unsafe { std::mem::transmute::<&dyn Erased, &(dyn Erased + 'static)>(erased) };
    erased.id()
}

#[cfg(test)]
pub(crate) mod tests {
    use tunebook_data::Dataset;

    use super::*;

    /// The forms that a value is shown in.
    pub(crate) fn shown<T: Debug>(value: &T) -> MimeBundle {
        bundle(Value {
            id: type_id::<T>(),
            pointer: std::ptr::from_ref(value).cast(),
            debug: value,
        })
    }

    #[test]
    fn ids_ignore_lifetimes_and_nothing_else() {
        fn of_local<'a>(_: &'a u8) -> TypeId {
            type_id::<&'a u8>()
        }
        assert_eq!(of_local(&1), TypeId::of::<&'static u8>());
        assert_ne!(type_id::<u8>(), type_id::<i8>());
        assert_eq!(type_id::<str>(), TypeId::of::<str>());
    }

    /// A borrowed text has the id of `&'static str`. If that could be asked for, a text would be
    /// handed out for longer than it lives.
    #[test]
    fn borrowed_types_cannot_be_asked_for() {
        /// Has one `found` for every type, and a second one for types on the list: which one is
        /// meant would then not be clear, and this would not compile.
        trait OnTheList<Which> {
            fn found() {}
        }
        impl<T: ?Sized> OnTheList<()> for T {}
        struct Second;
        impl<T: ?Sized + WithoutLifetimes> OnTheList<Second> for T {}
        <&'static str as OnTheList<_>>::found();
        <std::borrow::Cow<'static, str> as OnTheList<_>>::found();
        // The test itself works: this type is on the list, and both can be named.
        <Dataset as OnTheList<()>>::found();
        <Dataset as OnTheList<Second>>::found();
    }

    #[test]
    fn values_without_a_view_are_shown_by_debug() {
        assert_eq!(shown(&"text").plain(), "\"text\"");
        assert_eq!(shown(&vec![1, 2]).plain(), "[1, 2]");
        let long: Vec<usize> = (0..1000).collect();
        assert!(!shown(&long).plain().contains('\n'));
        let huge = "x".repeat(60_000);
        assert!(shown(&huge).plain().ends_with("more characters)"));
        let config = tunebook_models::GenerationConfig::default();
        assert!(shown(&config).plain().contains("\n    max_new_tokens: 256,"));
    }

    #[test]
    fn what_is_borrowed_or_may_be_missing_is_shown_as_it_is() {
        let table = || {
            let mut table = tunebook_charts::Table::new(["a"]);
            table.row(["1"]);
            table
        };
        let html = |bundle: MimeBundle| format!("{bundle:?}");
        let own = html(shown(&table()));
        assert!(own.contains("<table"), "{own}");
        let (some, borrowed) = (Some(table()), table());
        assert_eq!(html(shown(&some)), own);
        assert_eq!(html(shown(&&borrowed)), own);
        assert_eq!(html(shown(&some.as_ref())), own);
        assert_eq!(shown(&None::<tunebook_charts::Table>).plain(), "None");
    }

    #[test]
    fn borrowed_values_can_be_shown() {
        let numbers = [3, 1, 2];
        // Neither compiles if the trait asks for 'static.
        numbers.iter().max().evcxr_display();
        numbers[..2].evcxr_display();
        "slice".evcxr_display();
    }
}
