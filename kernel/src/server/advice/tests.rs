use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;

/// An error as rustc writes it, about a cell.
struct Error {
    cell: &'static str,
    json: Value,
}

/// The n-th place of `text` in the cell: line, column, and the whole line.
fn place(cell: &str, text: &str, nth: usize) -> (usize, usize, String) {
    let at =
        cell.match_indices(text).nth(nth).unwrap_or_else(|| panic!("no {text:?} in {cell:?}")).0;
    let before = &cell[..at];
    let line = before.matches('\n').count();
    let begin = before.rfind('\n').map_or(0, |at| at + 1);
    (line + 1, cell[begin..at].chars().count() + 1, cell.lines().nth(line).unwrap().to_owned())
}

/// The lines of evcxr's code before the cell.
const ABOVE: usize = 100;

fn span(cell: &str, text: &str, nth: usize, label: &str, is_primary: bool) -> Value {
    let (line, column, whole) = place(cell, text, nth);
    let end = column + text.chars().count();
    json!({
        "file_name": "cell/src/lib.rs", "is_primary": is_primary, "label": label,
        "line_start": line + ABOVE, "line_end": line + ABOVE, "column_start": column, "column_end": end,
        "text": [{"text": whole, "highlight_start": column, "highlight_end": end}],
    })
}

impl Error {
    fn new(cell: &'static str, code: &str, message: &str) -> Self {
        let code = if code.is_empty() { Value::Null } else { json!({"code": code}) };
        let json = json!({"level": "error", "code": code, "message": message, "spans": [], "children": []});
        Self { cell, json }
    }

    fn push(mut self, list: &str, value: Value) -> Self {
        self.json[list].as_array_mut().unwrap().push(value);
        self
    }

    fn at(self, text: &str, nth: usize, label: &str) -> Self {
        let value = span(self.cell, text, nth, label, true);
        self.push("spans", value)
    }

    /// The place right behind `text`.
    fn behind(self, text: &str, nth: usize) -> Self {
        let mut value = span(self.cell, text, nth, "", true);
        value["column_start"] = value["column_end"].clone();
        value["text"][0]["highlight_start"] = value["text"][0]["highlight_end"].clone();
        self.push("spans", value)
    }

    fn other(self, text: &str, nth: usize, label: &str) -> Self {
        let value = span(self.cell, text, nth, label, false);
        self.push("spans", value)
    }

    fn note(self, message: &str) -> Self {
        self.push("children", json!({"level": "note", "message": message, "spans": []}))
    }

    fn help(self, message: &str) -> Self {
        self.push("children", json!({"level": "help", "message": message, "spans": []}))
    }

    /// A proposal to write `new` in place of `text`.
    fn change(self, message: &str, text: &str, nth: usize, new: &str) -> Self {
        let mut value = span(self.cell, text, nth, "", true);
        value["suggested_replacement"] = new.into();
        self.push("children", json!({"level": "help", "message": message, "spans": [value]}))
    }

    /// A proposal to write `new` before (or behind) `text`.
    fn insert(self, message: &str, text: &str, nth: usize, behind: bool, new: &str) -> Self {
        let mut value = span(self.cell, text, nth, "", true);
        let at = value[if behind { "column_end" } else { "column_start" }].clone();
        for name in ["column_start", "column_end"] {
            value[name] = at.clone();
        }
        for name in ["highlight_start", "highlight_end"] {
            value["text"][0][name] = at.clone();
        }
        value["suggested_replacement"] = new.into();
        self.push("children", json!({"level": "help", "message": message, "spans": [value]}))
    }

    /// Proposals to write one of these at the cell's beginning.
    fn choices(self, message: &str, writes: &[&str]) -> Self {
        let spans: Vec<Value> = writes
            .iter()
            .map(|write| {
                let mut value = span(self.cell, "", 0, "", true);
                value["suggested_replacement"] = (*write).into();
                value
            })
            .collect();
        self.push("children", json!({"level": "help", "message": message, "spans": spans}))
    }

    fn read(&self) -> Option<Diagnostic> {
        Diagnostic::of_json(&self.json, self.cell, None)
    }
}

fn notebook<'a>(code: &'a str, variables: &'a [(String, String)], gone: &'a Gone) -> Notebook<'a> {
    Notebook { code, variables, gone }
}

const LABEL_MOVED: &str = "value moved here";
const SCOPE: &str = "not found in this scope";
const CLONE: &str = "consider cloning the value if the performance cost is acceptable";
const BORROW: &str = "consider borrowing here";
const QUESTION: &str = "use the `?` operator to extract the `Dataset` value, propagating a `Result::Err` value to the caller";

/// The kind, a part of the cause, a part of the step, and the error.
type Case = (&'static str, &'static str, &'static str, Error);

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let e = Error::new;
    vec![
        ("moved", "line 1, `eat(bag);`, has moved it", "`bag.clone()`",
         e("eat(bag);\nbag.len()", "E0382", "borrow of moved value: `bag`")
            .other("bag", 0, LABEL_MOVED).at("bag", 1, "value borrowed here after move").insert(CLONE, "bag", 0, true, ".clone()")),
        ("moved", "`words` is gone", "Loop over `&words`",
         e("for word in words { }\nwords.len()", "E0382", "borrow of moved value: `words`")
            .other("words", 0, "`words` moved due to this implicit call to `.into_iter()`").at("words", 1, "value borrowed here after move")
            .insert("consider iterating over a slice of the `Vec<String>`'s content to avoid moving into the `for` loop", "words", 0, false, "&")),
        ("not mutable", "`count` may not change", "`let mut count`",
         e("let count = 0;\ncount += 1;", "E0384", "cannot assign twice to immutable variable `count`")
            .at("count += 1", 0, "cannot assign twice to immutable variable")),
        ("not mutable", "`fixed` may not change", "`let mut fixed`",
         e("let fixed = vec![1];\nfixed.push(2);", "E0596", "cannot borrow `fixed` as mutable, as it is not declared as mutable")
            .at("fixed", 1, "cannot borrow as mutable")),
        ("value of a Result", "gives a `Result`: the `Dataset`", "Write `?`",
         e("let d: Dataset = Dataset::read(\"x\");", "E0308", "mismatched types")
            .at("Dataset::read(\"x\")", 0, "expected `Dataset`, found `Result<Dataset, DataError>`").insert(QUESTION, "Dataset::read(\"x\")", 0, true, "?")),
        ("value of a Result", "is an `Option`", "ok_or",
         e("let d: Dataset = split.test;", "E0308", "mismatched types").at("split.test", 0, "expected `Dataset`, found `Option<Dataset>`")),
        ("method of a Result", "`data` is a `Result`: a `Dataset`, or an error", "end of the `let` that makes `data`",
         e("data.len()", "E0599", "no method named `len` found for enum `std::result::Result<T, E>` in the current scope")
            .at("len", 0, "method not found in `std::result::Result<tunebook::prelude::Dataset, DataError>`")),
        ("method of a Result", "`split.test` is an `Option`: there may be no `Dataset`", "`split.test.as_ref().ok_or(\"there is none\")?`",
         e("split.test.height()", "E0599", "no method named `height` found for enum `Option<T>` in the current scope")
            .at("height", 0, "method not found in `Option<tunebook::prelude::Dataset>`")),
        ("method of a Result", "`split.test` is an `Option`: there may be no `Dataset`", "`split.test.as_ref()",
         e("split.test.len()", "E0624", "method `len` is private").at("len", 0, "private method")
            .insert("consider using `Option::expect` to unwrap the `tunebook::prelude::Dataset` value, panicking if the value is an `Option::None`", "test", 0, true, ".expect(\"REASON\")")),
        ("? in a function", "returns an `i32`", "`-> Result<i32, Box<dyn std::error::Error>>`",
         e("fn g() -> i32 { \"5\".parse()? }", "E0277", "the `?` operator can only be used in a function that returns `Result`")
            .at("?", 0, "cannot use the `?` operator in a function that returns `i32`")),
        ("? without a Result", "this is a `usize` already", "Leave the `?` away",
         e("let x = data.len()?;", "E0277", "the `?` operator can only be applied to values that implement `Try`")
            .at("data.len()?", 0, "the `?` operator cannot be applied to type `usize`")),
        ("named argument", "no named arguments", "struct",
         e("model.chat(\"Hi\", max_new_tokens=20)?", "E0425", "cannot find value `max_new_tokens` in this scope").at("max_new_tokens", 0, SCOPE)),
        ("Python's value", "no `True`", "Write `true`",
         e("let flag: bool = True;", "E0425", "cannot find value `True` in this scope").at("True", 0, "")),
        ("missing variable", "no variable `model` in this session", "Run the cell that makes `model`",
         e("model.summary()", "E0425", "cannot find value `model` in this scope").at("model", 0, SCOPE)),
        ("missing variable", "made by `let`", "`let x = …;`",
         e("x = 5;", "E0425", "cannot find value `x` in this scope").at("x", 0, "")
            .insert("you might have meant to introduce a new binding", "x", 0, false, "let ")),
        ("missing variable", "cell [3], which makes it, has failed", "Mend that cell",
         e("made.len()", "E0425", "cannot find value `made` in this scope").at("made", 0, SCOPE)),
        ("missing variable", "but a `data`", "Write `data`",
         e("data2", "E0425", "cannot find value `data2` in this scope").at("data2", 0, "")
            .change("a local variable with a similar name exists", "data2", 0, "data")),
        ("Python's function", "`range` as in Python", "0..10",
         e("for i in range(3) { }", "E0425", "cannot find function `range` in this scope").at("range", 0, SCOPE)),
        ("missing function", "no function `house_style`", "`fn house_style`",
         e("house_style(1)", "E0425", "cannot find function `house_style` in this scope").at("house_style", 0, SCOPE)),
        ("missing type", "no type `string`", "`String`",
         e("let x: string = y;", "E0425", "cannot find type `string` in this scope").at("string", 0, "")),
        ("missing type", "not under its short name", "`use std::collections::HashMap;`",
         e("let m: HashMap<u8, u8> = y;", "E0425", "cannot find type `HashMap` in this scope").at("HashMap", 0, "")
            .change("a type alias with a similar name exists", "HashMap", 0, "PlHashMap")
            .insert("consider importing this struct", "let", 0, false, "use std::collections::HashMap;\n")),
        ("missing crate", "no `torch` as in Python", "`Tensor`",
         e("let t = torch::zeros(3);", "E0433", "cannot find module or crate `torch` in this scope")
            .at("torch", 0, "use of unresolved module or unlinked crate `torch`")),
        ("missing crate", "`data` is a variable", "`data.`",
         e("data::len()", "E0433", "cannot find module or crate `data` in this scope")
            .at("data", 0, "use of unresolved module or unlinked crate `data`")),
        ("missing crate", "no crate or module `rand`", "`:dep rand`",
         e("use rand::Rng;", "E0432", "unresolved import `rand`").at("rand", 0, "use of unresolved module or unlinked crate `rand`")),
        ("missing item", "`tunebook` has no `preludes`", "use tunebook::prelude::*;",
         e("use tunebook::preludes::*;", "E0432", "unresolved import `tunebook::preludes`").at("preludes", 0, "could not find `preludes` in `tunebook`")),
        ("macro without !", "called with `!`", "`println!(\"{name}\")`",
         e("print(name)", "E0423", "expected function, found macro `print`").at("print", 0, "not a function")),
        ("macro without !", "called with `!`", "`println!(\"hello\")`",
         e("println(\"hello\")", "E0423", "expected function, found macro `println`").at("println", 0, "not a function")),
        ("unknown field of a literal", "`Lora` has no field `rank`", "called `r`",
         e("Lora { rank: 8 }", "E0560", "struct `tunebook::prelude::Lora` has no field named `rank`").at("rank", 0, "unknown")),
        ("unknown field of a literal", "no field `learningrate`", "Write `learning_rate`.",
         e("TrainingArgs { learningrate: 1.0 }", "E0560", "struct `tunebook::prelude::TrainingArgs` has no field named `learningrate`")
            .at("learningrate", 0, "unknown field").change("a field with a similar name exists", "learningrate", 0, "learning_rate")),
        ("unknown field", "`Splits` has no field `held`", "`train`, `validation`",
         e("split.held", "E0609", "no field `held` on type `tunebook::prelude::Splits`").at("held", 0, "unknown field")
            .note("available fields are: `train`, `validation`, `test`")),
        ("missing fields", "gives some of its fields only", "`..Default::default()`",
         e("Lora { r: 8 }", "E0063", "missing fields `alpha` and 12 other fields in initializer of `tunebook::prelude::Lora`").at("Lora", 0, "missing")),
        ("missing fields", "lacks `y`", "value to each field",
         e("P { x: 8 }", "E0063", "missing field `y` in initializer of `P`").at("P", 0, "missing `y`")),
        ("method as a field", "`len` is a method", "`len()`",
         e("words.len", "E0615", "attempted to take value of method `len` on type `Vec<String>`").at("len", 0, "method, not a field")),
        ("missing method", "no method `append`", "Write `push`",
         e("words.append(1)", "E0599", "no method named `append` found for struct `Vec<String>` in the current scope").at("append", 0, "")),
        ("missing method", "no method `clen`", "Write `clean`.",
         e("data.clen()", "E0599", "no method named `clen` found for struct `tunebook::prelude::Dataset` in the current scope").at("clen", 0, "")
            .change("there is a method `clean` with a similar name", "clen", 0, "clean")),
        ("missing constructor", "no `Lora::new`", "`Lora { …, ..Default::default() }`",
         e("Lora::new(8)", "E0599", "no function or associated item named `new` found for struct `tunebook::prelude::Lora` in the current scope")
            .at("new", 0, "").change("there is a method `ne` with a similar name", "new", 0, "ne")),
        ("missing constructor", "no `Dataset::open`", "`Dataset::from_rows`, `Dataset::read`",
         e("Dataset::open(1)", "E0599", "no function or associated item named `open` found for struct `tunebook::prelude::Dataset` in the current scope")
            .at("open", 0, "").note("if you're trying to build a new `Dataset` consider using one of the following associated functions:\na::Dataset::from_rows\ndata::read::<impl Dataset>::read\nand 2 others")),
        ("len(x)", "`len` is a method", "`words.len()`",
         e("len(words)", "E0061", "this function takes 0 arguments but 1 argument was supplied").at("len", 0, "").other("words", 0, "unexpected argument of type `Vec<String>`")),
        ("number of arguments", "`add_adapter` takes 2 arguments, and 1 is given", "`add_adapter(\"a\", /* config */)`",
         e("model.add_adapter(\"a\")?", "E0061", "this method takes 2 arguments but 1 argument was supplied").at("add_adapter", 0, "")
            .change("provide the argument", "(\"a\")", 0, "(\"a\", /* config */)")),
        ("number of arguments", "and 2 are given", "Leave `20` away",
         e("model.chat(\"Hi\", 20)", "E0061", "this method takes 1 argument but 2 arguments were supplied").at("chat", 0, "").other("20", 0, "unexpected argument #2 of type `{integer}`")),
        ("value called", "not a function", "`words[0]`",
         e("words(0)", "E0618", "expected function, found `Vec<String>`").at("words", 0, "call expression requires function")),
        ("closure's arguments", "takes 1 argument", "`|a, b|`",
         e("metric_fn(|x| 1.0)", "E0593", "closure is expected to take 2 arguments, but it takes 1 argument").at("metric_fn(|x| 1.0)", 0, "")),
        ("closure's value", "gives a `usize`", "` as f64`",
         e("f(|x| 1)", "E0271", "expected `{closure@a.rs:1:1}` to return `f64`, but it returns `usize`").at("1", 0, "")),
        ("number of another type", "`16` is a whole number", "`16.0`",
         e("Lora { lora_alpha: 16 }", "E0308", "mismatched types").at("16", 0, "expected `f64`, found integer").insert("use a float literal", "16", 0, true, ".0")),
        ("number of another type", "has a point", "Write `3`",
         e("let n: usize = 3.0;", "E0308", "mismatched types").at("3.0", 0, "expected `usize`, found floating-point number")),
        ("number of another type", "is a `usize`, and an `i32`", "`(a + b) as i32`",
         e("let n: i32 = a + b;", "E0308", "mismatched types").at("a + b", 0, "expected `i32`, found `usize`")),
        ("arithmetic of two types", "an `i32` and an `f64`", "`… as f64`",
         e("x * y", "E0277", "cannot multiply `i32` by `f64`").at("*", 0, "no implementation for `i32 * f64`")),
        ("position", "a position is a `usize`", "`[i as usize]`",
         e("words[i]", "E0277", "the type `[String]` cannot be indexed by `i32`").at("i", 0, "slice indices are of type `usize`")),
        ("negative position", "none below", "`words[words.len() - 1]`",
         e("words[-1]", "", "negative integers cannot be used to index on a `Vec<String>`").at("-1", 0, "")),
        ("+ of texts", "does not join", "`format!(\"{}{}\", \"a\", \"b\")`",
         e("\"a\" + \"b\"", "E0369", "cannot add `&str` to `&str`").other("\"a\"", 0, "&str").other("\"b\"", 0, "&str").at("+", 0, "")),
        ("number behind a text", "`5` is a number", "`format!(\"{name}{}\", 5)`",
         e("name + 5", "E0308", "mismatched types").at("5", 0, "expected `&str`, found integer")),
        ("not printable", "cannot print a `Vec<String>`", "`{:?}`",
         e("println!(\"{}\", words)", "E0277", "`Vec<String>` doesn't implement `std::fmt::Display`").at("words", 0, "")),
        ("loop over a number", "nothing to loop over", "`0..3`",
         e("for i in 3 { }", "E0277", "`{integer}` is not an iterator").at("3", 0, "")),
        ("lent", "a `&Model` is expected", "Lend it: write `&model`",
         e("evaluate(model, 1)?", "E0308", "mismatched types").at("model", 0, "expected `&Model`, found `Model`").insert(BORROW, "model", 0, false, "&")),
        ("another of that name", "there is no `first`: it lived in cell [2] only", "`words[0].clone()`",
         e("println!(\"{first}\")", "E0277", "`fn() -> Selector {tunebook::prelude::first}` doesn't implement `std::fmt::Display`").at("{first}", 0, "")),
        ("another of that name", "there is no `list`", "`.collect::<Vec<_>>()`",
         e("list.count()", "E0423", "expected value, found module `list`").at("list", 0, "")),
        ("name of another library", "there is no `LoraConfig`", "`Lora { r: 8",
         e("let c = LoraConfig { r: 8 };", "E0422", "cannot find struct, variant or union type `LoraConfig` in this scope").at("LoraConfig", 0, "not found in this scope")),
        ("name of another library", "there is no `load_dataset`", "`Dataset::read(",
         e("load_dataset(\"json\")", "E0425", "cannot find function `load_dataset` in this scope").at("load_dataset", 0, "not found in this scope")),
        ("rows are no iterator", "`Dataset` has no method `filter`", "`Dataset::from_frame(",
         e("data.filter(|r| true)", "E0599", "`Dataset` is not an iterator").at("filter", 0, "`Dataset` is not an iterator")),
        ("missing method", "`Dataset` has no method `train_test_split`", "`data.split(",
         e("data.train_test_split(0.1)", "E0599", "no method named `train_test_split` found for struct `Dataset` in the current scope").at("train_test_split", 0, "")),
        ("matched text", "`name` is a `String`", "`match name.as_str()`",
         e("match name { \"a\" => 1 }", "E0308", "mismatched types").at("\"a\"", 0, "expected `String`, found `&str`")
            .other("name", 0, "this expression has type `std::string::String`")),
        ("text", "is a `&str`, and a `String`", "`\"abc\".to_string()`",
         e("let t: String = \"abc\";", "E0308", "mismatched types").at("\"abc\"", 0, "expected `String`, found `&str`")
            .insert("try using a conversion method", "\"abc\"", 0, true, ".to_string()")),
        ("number as text", "is a text, and a number", "without quotes: `5`",
         e("let n: usize = \"5\";", "E0308", "mismatched types").at("\"5\"", 0, "expected `usize`, found `&str`")),
        ("condition", "one `=` sets", "`n == 2`",
         e("if n = 2 { }", "E0308", "mismatched types").at("n = 2", 0, "expected `bool`, found `()`")
            .insert("you might have meant to compare for equality", "= 2", 0, false, "=")),
        ("condition", "`1` is a number", "Write `true`",
         e("A { packing: 1 }", "E0308", "mismatched types").at("1", 0, "expected `bool`, found integer")),
        ("condition", "`n` is a `usize`", "`n > 0`",
         e("if n { }", "E0308", "mismatched types").at("n", 0, "expected `bool`, found `usize`")),
        ("semicolon behind the value", "the `;` behind its last value", "Leave that last `;`",
         e("fn add() -> i32 { 1; }", "E0308", "mismatched types").at("i32", 0, "expected `i32`, found `()`")
            .change("remove this semicolon to return this value", ";", 0, "")),
        ("missing return type", "does not say so", "`-> i32`",
         e("fn add(a: i32) { a + 1 }", "E0308", "mismatched types").at("a + 1", 0, "expected `()`, found `i32`")
            .insert("try adding a return type", "{", 0, false, " -> i32")),
        ("converted", "must become a `TargetModules`", "`[\"q\"].into()`",
         e("Lora { target_modules: [\"q\"] }", "E0308", "mismatched types").at("[\"q\"]", 0, "expected `TargetModules`, found `[&str; 1]`")
            .insert("call `Into::into` on this expression to convert `[&str; 1]` into `TargetModules`", "[\"q\"]", 0, true, ".into()")),
        ("append", "another list", "`push( … )`",
         e("words.append(x)", "E0308", "mismatched types").at("x", 0, "expected `&mut Vec<String>`, found `String`").other("append", 0, "arguments to this method are incorrect")
            .change("you might have meant to use `push`", "append", 0, "push")),
        ("Some", "an `Option` is expected", "`Some(3)`",
         e("A { max_steps: 3 }", "E0308", "mismatched types").at("3", 0, "expected `Option<usize>`, found integer")
            .help("try wrapping the expression in `Some`")),
        ("value of return", "without `return`", "`5` alone",
         e("return 5", "E0308", "mismatched types").at("5", 0, "expected `Result<(), EvcxrUserCodeError>`, found integer")),
        ("append", "another list", "`push( … )`",
         e("words.append(\"c\")", "E0308", "mismatched types").at("\"c\"", 0, "types differ in mutability").other("append", 0, "arguments to this method are incorrect")),
        ("list", "is an array", "`vec![1, 2]`",
         e("let v: Vec<i32> = [1, 2];", "E0308", "mismatched types").at("[1, 2]", 0, "expected `Vec<i32>`, found `[i32; 2]`")),
        ("type to read", "what `parse` is to read", "`let n: i32",
         e("let n = \"5\".parse()?;", "E0277", "the trait bound `!: FromStr` is not satisfied").at("parse", 0, "")),
        ("unknown type", "what the list will hold", "`let v: Vec<String> = …`",
         e("let v = vec![];", "E0282", "type annotations needed for `Vec<_>`").at("v", 0, "")
            .insert("consider giving `v` an explicit type, where the placeholders `_` are specified", "v", 0, true, ": Vec<_>")),
        ("unknown type", "what `collect` is to make", "`let v: Vec<_> = …`",
         e("let v = words.iter().collect();", "E0283", "type annotations needed").at("v", 0, "").other("collect", 0, "type must be known at this point")
            .insert("consider giving `v` an explicit type", "v", 0, true, ": Vec<_>")),
        ("unknown type", "the type of the sum", "`let v: f64 = …`",
         e("let v = words.iter().sum();", "E0283", "type annotations needed").at("v", 0, "").other("sum", 0, "type must be known at this point")
            .insert("consider giving `v` an explicit type", "v", 0, true, ": /* Type */")),
        ("unknown type", "the closure's `x`", "`|x: f64|`",
         e("let f = |x| x + 1;", "E0284", "type annotations needed").at("x", 0, "")
            .insert("consider giving this closure parameter an explicit type", "x", 0, true, ": /* Type */")),
        ("number's type", "number's type is not known", "`2.0_f64`",
         e("2.0.sqrt()", "E0689", "can't call method `sqrt` on ambiguous numeric type `{float}`").at("sqrt", 0, "")
            .change("you must specify a concrete type for this numeric value, like `f32`", "2.0", 0, "2.0_f32")),
        ("text of its own", "is lent", "`-> String`",
         e("fn f(a: &str, b: &str) -> &str { a }", "E0106", "missing lifetime specifier").at("&", 2, "expected named lifetime parameter")),
        ("kept reference", "`first` lends", "a copy",
         e("let first: &'static str = &words[0];", "E0597", "`words` does not live long enough").at("words", 0, "borrowed value does not live long enough")
            .other("&'static str", 0, "type annotation requires that `words` is borrowed for `'static`")),
        ("quotes", "for one letter", "`\"abc\"`",
         e("let s = 'abc';", "", "character literal may only contain one codepoint").at("'abc'", 0, "")),
        ("quotes", "no f-strings", "format!",
         e("let s = f\"abc\";", "", "expected `;`, found `\"abc\"`").behind("f", 0).insert("add `;` here", "f", 0, true, ";")),
        ("Python's line", "this is Python", "use tunebook::prelude::*;",
         e("import os", "", "expected `;`, found keyword `fn`").at("import os", 0, "")),
        ("Python's line", "this is Python", "`fn name(x: f64) -> f64 { … }`",
         e("def f(x):\n    return x", "", "expected `;`, found `f`").behind("def", 0)),
        ("Python's line", "a comment begins with `//`", "`//`",
         e("# counts\n1", "", "expected one of `!` or `[`, found `counts`").at("counts", 0, "")),
        ("Python's line", "between braces", "`for i in 0..3 { … }`",
         e("for i in 0..3:\n    f(i)", "", "expected `{`, found `:`").at(":", 0, "expected `{`")),
        ("Python's word", "`and` is written", "`&&`",
         e("a and b", "", "`and` is not a logical operator").at("and", 0, "")),
        ("Python's word", "`not` is written", "`!`",
         e("not done", "", "expected one of `!`, found `done`").at("done", 0, "expected one of 8 possible tokens")),
        ("Python's word", "no `++`", "`+= 1`",
         e("i++", "", "Rust has no postfix increment operator").at("++", 0, "not a valid postfix operator")),
        ("decimal comma", "`0,0002` is two numbers", "`0.0002`",
         e("A { rate: 0,0002 }", "", "expected identifier, found `0002`").at("0002", 0, "expected identifier")),
        ("= in a literal", "with a colon", "`epochs: 3`",
         e("A { epochs = 3, b: 1 }", "", "expected `:`, found `=`").at("=", 0, "").change("replace equals symbol with a colon", " =", 0, ":")),
        ("bracket", "the `[` of line 2 is never closed", "`]`",
         e("let a = 1;\nlet v = vec![1, 2;", "", "mismatched closing delimiter: `}`").at("[", 0, "unclosed delimiter")),
        ("semicolon", "no `;` at its end", "`let x = 5;`",
         e("let x = 5\nprintln!(\"{x}\");", "", "expected `;`, found `println`").behind("5", 0).insert("add `;` here", "5", 0, true, ";")),
        ("parameter without type", "`a` has no type", "`a: f64`",
         e("fn add(a, b) { a }", "", "expected one of `:`, `@`, or `|`, found `,`").at(",", 0, "").insert("if this is a parameter name, give it a type", "a", 1, true, ": TypeName")),
        ("println without text", "a text with `{}`", "`println!(\"{name}\")`",
         e("println!(name)", "", "format argument must be a string literal").at("name", 0, "")),
        ("{} without a value", "has 2 `{}`", "one value for each",
         e("println!(\"{} {}\", 1)", "", "2 positional arguments in format string, but there is 1 argument").at("{}", 0, "")),
    ]
}

#[test]
fn each_kind_says_the_cause_and_the_step() {
    let mut gone = Gone::default();
    gone.note(3, &[], &[], &["made".to_owned()], End::Failed);
    gone.note_within(2, ["first", "list"].map(str::to_owned).into_iter());
    let variables = [("data".to_owned(), "Dataset".to_owned())];
    let mut met = BTreeSet::new();
    for (kind, cause, step, error) in cases() {
        let read = error.read().unwrap_or_else(|| panic!("not read: {:?}", error.cell));
        let said = of_one(&read, &notebook(error.cell, &variables, &gone));
        let (name, advice) = said.unwrap_or_else(|| panic!("no advice: {:?}", error.cell));
        assert_eq!(name, kind, "{:?}: {advice:?}", error.cell);
        assert!(advice.cause.contains(cause), "{:?}: {advice:?}", error.cell);
        assert!(advice.step.contains(step), "{:?}: {advice:?}", error.cell);
        let long = [&advice.cause, &advice.step].into_iter().any(|line| line.chars().count() > 150);
        assert!(!long && !advice.cause.contains('\n') && !advice.step.contains('\n'), "{advice:?}");
        met.insert(name);
    }
    let kinds = KINDS.iter().flat_map(|kinds| kinds.iter());
    let missed: Vec<&str> =
        kinds.map(|kind| kind.name).filter(|name| !met.contains(name)).collect();
    assert_eq!(missed, [""; 0], "kinds without a case");
}

#[test]
fn in_doubt_nothing_is_said() {
    let gone = Gone::default();
    let e = Error::new;
    for error in [
        // Types that only look alike.
        e("let d: Dataset = f();", "E0308", "mismatched types").at(
            "f()",
            0,
            "expected `Dataset`, found `Result<Splits, E>`",
        ),
        e("let d: Dataset = f();", "E0308", "mismatched types").at(
            "f()",
            0,
            "expected `Dataset`, found `Model`",
        ),
        // Borrowing is proposed for something else than the argument.
        e("f(a.b)", "E0308", "mismatched types")
            .at("a.b", 0, "expected `&B`, found `B`")
            .insert(BORROW, "f", 0, false, "&"),
        // A text that is no number.
        e("let n: usize = \"five\";", "E0308", "mismatched types").at(
            "\"five\"",
            0,
            "expected `usize`, found `&str`",
        ),
        e("a + b", "E0277", "cannot add `B` to `A`").at("+", 0, "no implementation for `A + B`"),
        e("*x += 1;", "E0594", "cannot assign to `*x`, which is behind a `&` reference")
            .at("*x += 1", 0, ""),
        e("f()?", "E0277", "`Mine` doesn't implement `std::fmt::Display`").at(
            "?",
            0,
            "`Mine` cannot be formatted with the default formatter",
        ),
        e("from = 3", "E0425", "cannot find type `from` in this scope").at("from", 0, ""),
        e("let e: Entry = f();", "E0425", "cannot find type `Entry` in this scope")
            .at("Entry", 0, "")
            .choices(
                "consider importing one of these enums",
                &["use std::collections::hash_map::Entry;\n", "use a::Entry;\n"],
            ),
        e("let b: bool = words;", "E0308", "mismatched types").at(
            "words",
            0,
            "expected `bool`, found `Vec<String>`",
        ),
        e("if a { } else: { }", "", "expected one of `{`").at(":", 0, ""),
        e("use other::Thing;", "E0432", "unresolved import `other::Thing`").at(
            "Thing",
            0,
            "no `Thing` in the root",
        ),
        e("xyz", "E0999", "new").at("xyz", 0, ""),
    ] {
        let read = error.read().unwrap();
        let said = of_one(&read, &notebook(error.cell, &[], &gone));
        assert_eq!(said, None, "{:?}", error.cell);
    }
    // An error of an earlier cell's item, which is compiled again.
    let earlier = e("x", "E0425", "cannot find value `yes` in this scope").at("x", 0, SCOPE);
    assert_eq!(Diagnostic::of_json(&earlier.json, "other_cell()", None), None);
}

#[test]
fn the_first_error_decides() {
    let gone = Gone::default();
    let cell = "words.len();\nwords.len();\nf(done);\nother";
    let error = |text: &str, nth: usize, code: &str| {
        let message = format!("cannot find value `{text}` in this scope");
        Error::new(cell, code, &message).at(text, nth, SCOPE).read()
    };
    let of = |errors: &[Option<Diagnostic>]| {
        of_diagnostics(errors, &notebook(cell, &[], &gone))
            .iter()
            .map(|one| one.line)
            .collect::<Vec<_>>()
    };
    // The same name once; two at most.
    let missing =
        [error("words", 0, "E0425"), None, error("done", 0, "E0425"), error("other", 0, "E0425")];
    assert_eq!(of(&missing), [0; 0], "a name on two equal lines has no place");
    assert_eq!(of(&missing[2..]), [3, 4]);
    assert_eq!(of(&[error("done", 0, "E0425"), error("done", 0, "E0425")]), [3]);
    // Nothing is known of the first: the others may follow from it.
    assert_eq!(of(&[error("done", 0, "E0999"), error("other", 0, "E0425")]), [0; 0]);
}

#[test]
fn advice_shows_the_own_line() {
    let advice = Advice { line: 2, cause: "cause.".into(), step: "Step.".into() };
    let lines = advice.lines("let a = 1;\n  let b = a;  ");
    assert_eq!(
        lines,
        ["\x1b[31mLine 2\x1b[0m: cause.", "\x1b[1m    2 |   let b = a;\x1b[0m", "Step."]
    );
    assert_eq!(Advice { line: 0, ..advice }.lines("x").len(), 2);
}

#[test]
fn evcxrs_own_errors_are_advised_upon() {
    let said = of_message(
        "The variable `p` contains a reference with a non-static lifetime so\ncan't be",
        "let a = 1;\nlet p = a.iter();",
    );
    let said = said.expect("advice");
    assert_eq!((said.line, said.cause.starts_with("`p` lends")), (2, true));
    let cargo =
        "    Updating crates.io index\nerror: no matching package named `serde_jsn` found\n";
    let said = of_message(cargo, ":dep serde_jsn = \"1\"").expect("advice");
    assert_eq!((said.line, said.cause.as_str()), (1, "crates.io has no crate `serde_jsn`."));
    assert_eq!(of_message("anything else", "x"), None);
}

#[test]
fn quoted_code_is_short() {
    assert_eq!(quoted("a\n   .b()"), "`a .b()`");
    assert_eq!(quoted(&"x".repeat(80)).chars().count(), 62);
    assert_eq!(
        (a("usize"), a("i32"), a("&Model"), a("Evaluation")),
        ("a `usize`".into(), "an `i32`".into(), "a `&Model`".into(), "an `Evaluation`".into())
    );
}
