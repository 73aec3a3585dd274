//! Macros of the notebook that define something where they are called.
//!
//! In the notebook items and variables that come out of a macro are gone after the cell: the kernel
//! keeps what it reads in the cell's text. In one function they would live on.

use std::collections::BTreeSet;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::{Item, Stmt};

use crate::cell::STATICS;

/// Words that begin an item, if a name follows.
const NAMED: [&str; 10] =
    ["const", "enum", "fn", "macro_rules", "mod", "static", "struct", "trait", "type", "union"];

/// The macros among these items whose rules define something where they are called.
pub(crate) fn that_define<'a>(items: impl Iterator<Item = &'a Item>) -> BTreeSet<String> {
    let rules: Vec<(String, TokenStream)> = items
        .filter_map(|item| match item {
            Item::Macro(item) => Some((item.ident.as_ref()?.to_string(), item.mac.tokens.clone())),
            _ => None,
        })
        .collect();
    let mut known: BTreeSet<String> = STATICS.iter().map(|&name| name.to_owned()).collect();
    loop {
        let before = known.len();
        for (name, rules) in &rules {
            if any_rule_defines(rules, &known) {
                known.insert(name.clone());
            }
        }
        if known.len() == before {
            return known;
        }
    }
}

/// The macro that a statement calls, if it defines something there.
pub(crate) fn defines_here(statement: &Stmt, known: &BTreeSet<String>) -> Option<String> {
    let Stmt::Macro(call) = statement else { return None };
    let name = call.mac.path.segments.last()?.ident.to_string();
    let is_it = known.contains(&name) || defines(&call.mac.tokens, &BTreeSet::new(), known);
    is_it.then_some(name)
}

fn any_rule_defines(rules: &TokenStream, known: &BTreeSet<String>) -> bool {
    let groups: Vec<TokenStream> = rules
        .clone()
        .into_iter()
        .filter_map(|token| match token {
            TokenTree::Group(group) => Some(group.stream()),
            _ => None,
        })
        .collect();
    // What is matched, and what becomes of it.
    groups.chunks(2).any(|rule| match rule {
        [matched, becomes] => defines(becomes, &items_of(matched), known),
        _ => false,
    })
}

/// The variables of a rule that stand for items or statements.
fn items_of(matched: &TokenStream) -> BTreeSet<String> {
    let words = crate::names::words(matched.clone());
    let found = words.windows(4).filter(|four| {
        four[0] == "$" && four[2] == ":" && ["item", "stmt"].contains(&four[3].as_str())
    });
    found.map(|four| four[1].clone()).collect()
}

/// Whether code defines something at its own level: what stands in braces is gone behind them.
fn defines(code: &TokenStream, items: &BTreeSet<String>, known: &BTreeSet<String>) -> bool {
    let tokens: Vec<TokenTree> = code.clone().into_iter().collect();
    let is = |at: usize, sign: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == sign);
    let word = |at: usize| match tokens.get(at) {
        Some(TokenTree::Ident(name)) => Some(name.to_string()),
        _ => None,
    };
    (0..tokens.len()).any(|at| match &tokens[at] {
        // `$( … )*`
        TokenTree::Group(group) if at > 0 && is(at - 1, '$') => {
            group.delimiter() == Delimiter::Parenthesis && defines(&group.stream(), items, known)
        }
        TokenTree::Ident(name) => {
            let name = name.to_string();
            let is_variable = at > 0 && is(at - 1, '$');
            match name.as_str() {
                name if is_variable => items.contains(name),
                // `*const T`
                "const" if at > 0 && is(at - 1, '*') => false,
                "impl" | "use" => true,
                // A plain name is the macro's own and not seen outside.
                "let" => tokens[at..]
                    .iter()
                    .take_while(|token| {
                        !matches!(token, TokenTree::Punct(p) if ['=', ';'].contains(&p.as_char()))
                    })
                    .any(|token| token.to_string().contains('$')),
                "macro_rules" => is(at + 1, '!'),
                name if NAMED.contains(&name) => word(at + 1).is_some() || is(at + 1, '$'),
                name => known.contains(name) && is(at + 1, '!'),
            }
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_macro_defines_outside_of_braces_is_found() {
        let items: Vec<Item> = [
            "macro_rules! function { ($n:ident) => { fn $n() {} } }",
            "macro_rules! many { ($($n:ident),*) => { $( struct $n; )* } }",
            "macro_rules! variable { ($n:ident) => { let mut $n = 1; } }",
            "macro_rules! other { () => { function!(a); } }",
            "macro_rules! given { ($i:item) => { $i } }",
            "macro_rules! scoped { ($n:ident) => {{ fn $n() {} let $n = 1; $n }} }",
            "macro_rules! own { ($e:expr) => { let kept: fn(u8) -> *const u8 = $e; } }",
            "macro_rules! value { ($e:expr) => { $e * 2 } }",
        ]
        .iter()
        .map(|code| syn::parse_str(code).expect("an item"))
        .collect();
        let known = that_define(items.iter());
        let found: Vec<&str> = known.iter().map(String::as_str).collect();
        assert_eq!(
            found,
            ["function", "given", "lazy_static", "many", "other", "thread_local", "variable"]
        );
        let here = |code: &str| defines_here(&syn::parse_str(code).expect("a statement"), &known);
        assert_eq!(here("function!(a);").as_deref(), Some("function"));
        assert_eq!(here("passed! { fn a() {} }").as_deref(), Some("passed"));
        assert_eq!(here("let x = value!(1);"), None);
        assert_eq!(here("println!(\"{}\", { fn a() {} 1 });"), None);
        assert_eq!(here("check!(f as fn(u8) -> u8);"), None);
    }
}
