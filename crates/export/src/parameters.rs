//! A cell tagged `parameters` (papermill's tag): its variables become flags of the program, with the
//! notebook's values as defaults.

use quote::ToTokens as _;
use syn::spanned::Spanned as _;
use syn::{Expr, Lit, Stmt, Type};

use crate::cell::Piece;
use crate::names;

/// Flags that the program has itself.
const OWN_FLAGS: [&str; 2] = ["help", "version"];
/// Types whose values are copied from the flag.
const PLAIN: [&str; 16] = [
    "bool", "char", "f32", "f64", "i128", "i16", "i32", "i64", "i8", "isize", "u128", "u16", "u32",
    "u64", "u8", "usize",
];

/// A variable of a cell of parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    /// The type of the flag's value.
    pub(crate) of: String,
    /// The notebook's value, as it is written there.
    pub(crate) default: String,
    /// The comments before it.
    pub(crate) help: String,
}

/// The name of a parameter without what its flag does not have.
pub(crate) fn flag_name(name: &str) -> String {
    name.trim_start_matches("r#").replace('_', "").to_lowercase()
}

/// Whether a parameter is a secret by its name, whose value a help text does not show.
pub(crate) fn is_secret(name: &str) -> bool {
    let words = ["key", "passwd", "password", "secret", "token"];
    name.to_lowercase().split('_').any(|word| words.contains(&word))
}

/// Reads a statement of the cell: the parameter, and the statement with the flag before the
/// notebook's value.
///
/// # Errors
/// The reason, when it is no `let` of a type that a flag can have.
pub(crate) fn read(piece: &Piece) -> Result<(Parameter, String), String> {
    const FORM: &str = "a cell of parameters holds `let name: Type = value;` only";
    let Stmt::Local(local) = &piece.statement else { return Err(FORM.to_owned()) };
    let (variable, of, value) = names::simple_let(local).ok_or(FORM)?;
    let name = variable.name;
    if OWN_FLAGS.contains(&flag_name(&name).as_str()) {
        return Err(format!("the flag --{name} is the program's own; rename the parameter"));
    }
    let of = match of {
        Some(of) => of.clone(),
        None => literal_type(value).ok_or_else(|| {
            format!("the parameter `{name}` needs a type: `let {name}: Type = …;`")
        })?,
    };
    let (of, taken) = flag(&of).ok_or_else(|| {
        format!(
            "the parameter `{name}` has the type `{}`; a flag can be a number, a bool, a char, a \
             text (`String`, `&str`), a `PathBuf`, or an `Option` of one",
            piece.slice(of.span().byte_range())
        )
    })?;
    let range = value.span().byte_range();
    let default = piece.slice(range.clone()).to_owned();
    let (begin, end) = (range.start - piece.start, range.end - piece.start);
    let text = format!(
        "{}match &notebook_flags.{name} {{ Some(flag) => {taken}, None => {default} }}{}",
        &piece.text[..begin],
        &piece.text[end..],
    );
    Ok((Parameter { name, of, default, help: help(piece) }, text))
}

/// The type of the flag's value, and how the variable is made of it.
fn flag(of: &Type) -> Option<(String, String)> {
    if let Type::Reference(of) = of {
        let is_text = of.mutability.is_none() && of.elem.to_token_stream().to_string() == "str";
        // Like the notebook's, it lives as long as the program.
        return is_text.then(|| ("String".to_owned(), "&*flag.clone().leak()".to_owned()));
    }
    let Type::Path(path) = of else { return None };
    let last = path.path.segments.last()?;
    let name = last.ident.to_string();
    if name == "Option" {
        let syn::PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
        let Some(syn::GenericArgument::Type(of)) = arguments.args.first() else { return None };
        let (of, taken) = flag(of)?;
        return (!of.starts_with("Option")).then(|| (of, format!("Some({taken})")));
    }
    match name.as_str() {
        plain if PLAIN.contains(&plain) => Some((name, "*flag".to_owned())),
        "String" => Some((name, "flag.clone()".to_owned())),
        "PathBuf" => Some(("std::path::PathBuf".to_owned(), "flag.clone()".to_owned())),
        _ => None,
    }
}

/// The type that a variable gets of a literal without a suffix that says another.
fn literal_type(value: &Expr) -> Option<Type> {
    let literal = match value {
        Expr::Lit(literal) => literal,
        Expr::Unary(unary) => match &*unary.expr {
            Expr::Lit(literal) => literal,
            _ => return None,
        },
        _ => return None,
    };
    let suffixed = |suffix: &str, default: &str| match suffix {
        "" => default.to_owned(),
        suffix => suffix.to_owned(),
    };
    let name = match &literal.lit {
        Lit::Bool(_) => "bool".to_owned(),
        Lit::Char(_) => "char".to_owned(),
        Lit::Float(float) => suffixed(float.suffix(), "f64"),
        Lit::Int(int) => suffixed(int.suffix(), "i32"),
        Lit::Str(_) => "&str".to_owned(),
        _ => return None,
    };
    syn::parse_str(&name).ok()
}

/// The words of the comments before a parameter, and behind it.
fn help(piece: &Piece) -> String {
    let own = piece.text.lines().filter(|line| line.trim_start().starts_with("///"));
    let lines = piece.leading.lines().chain(own).chain(piece.trailing.lines());
    let words = lines
        .map(|line| line.trim().trim_start_matches(['/', '*']).trim_end_matches(['/', '*']).trim());
    words.filter(|words| !words.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Code;

    fn one(source: &str) -> Result<(Parameter, String), String> {
        let code = Code::read(source).expect("a cell");
        read(&code.pieces[0])
    }

    #[test]
    fn a_let_becomes_a_flag_with_its_value_as_default() {
        let (parameter, text) = one("// How often.\nlet epochs: usize = 3; // passes").unwrap();
        assert_eq!(
            parameter,
            Parameter {
                name: "epochs".into(),
                of: "usize".into(),
                default: "3".into(),
                help: "How often. passes".into()
            }
        );
        assert_eq!(
            text,
            "let epochs: usize = match &notebook_flags.epochs { Some(flag) => *flag, None => 3 };"
        );
        for (source, of, taken) in [
            ("let rate = 3e-3;", "f64", "*flag"),
            ("let mut n = -1;", "i32", "*flag"),
            ("let n = 1u8;", "u8", "*flag"),
            ("let name = \"é\";", "String", "&*flag.clone().leak()"),
            ("let steps: Option<usize> = Some(3);", "usize", "Some(*flag)"),
            ("let out: std::path::PathBuf = \"a\".into();", "std::path::PathBuf", "flag.clone()"),
        ] {
            let (parameter, text) = one(source).expect(source);
            assert_eq!(parameter.of, of);
            assert!(text.contains(&format!("Some(flag) => {taken},")), "{text}");
        }
    }

    #[test]
    fn what_no_flag_can_say_is_refused_by_name() {
        for (source, reason) in [
            ("let names: Vec<String> = vec![];", "`names` has the type `Vec<String>`"),
            ("let x = f();", "`x` needs a type"),
            ("println!(\"a\");", "holds `let name: Type = value;` only"),
            ("let (a, b) = (1, 2);", "holds `let name: Type = value;` only"),
            ("let help: bool = true;", "--help is the program's own"),
        ] {
            let told = one(source).expect_err(source);
            assert!(told.contains(reason), "{told}");
        }
    }
}
