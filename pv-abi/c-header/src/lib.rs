//! Generates `pv-abi/include/roost.h`, the guest ABI for C. `cargo run -p c-header` prints it.
//!
//! Names and comments are those of pv-abi, numbers and layouts are what the compiler makes of it
//! (`build.rs` lists them), the text is cbindgen's.

use cbindgen::{Builder, Config, DocumentationStyle, Language, Style};
use std::{collections::HashMap, fmt::Write, fs};

include!(concat!(env!("OUT_DIR"), "/list.rs"));

/// A number.
struct Constant {
    name: &'static str,
    kind: &'static str,
    docs: &'static str,
    value: u64,
}

/// A layout.
struct Structure {
    name: &'static str,
    docs: &'static str,
    size: usize,
    /// Comment and declaration, in Rust.
    fields: &'static [(&'static str, &'static str)],
    offsets: &'static [(&'static str, usize)],
}

const HEADER: &str = "\
/* The guest ABI of Roost, for kernels in C. The meaning is in docs/spec/guest.md.
 *
 * Generated from the crate pv-abi: change that, then run
 *     cargo run -p c-header >pv-abi/include/roost.h
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0 */";

/// The header.
///
/// # Panics
/// cbindgen fails, or no temporary file can be written.
#[must_use]
pub fn header() -> String {
    let mut source = String::new();
    for Constant { name, kind, docs, value } in CONSTANTS {
        comment(&mut source, docs);
        // A suffix where the type needs one.
        let suffix = if matches!(*kind, "u32" | "u64") { kind } else { "" };
        let _ = writeln!(source, "pub const ROOST_{name}: {kind} = {value}{suffix};");
    }
    let mut checks = String::from("#ifndef __cplusplus\n");
    let mut config = config();
    for Structure { name, docs, size, fields, offsets } in STRUCTURES {
        comment(&mut source, docs);
        let _ = writeln!(source, "#[repr(C)] pub struct {name} {{");
        for (docs, declaration) in *fields {
            comment(&mut source, docs);
            let _ = writeln!(source, "{declaration}");
        }
        source.push_str("}\n");
        let c_name = format!("roost_{}", snake(name));
        let _ = writeln!(checks, "_Static_assert(sizeof(struct {c_name}) == {size}, \"size\");");
        for (field, offset) in *offsets {
            let place = format!("offsetof(struct {c_name}, {field})");
            let _ = writeln!(checks, "_Static_assert({place} == {offset}, \"{field}\");");
        }
        config.export.include.push((*name).to_owned());
        config.export.rename.insert((*name).to_owned(), c_name);
    }
    checks.push_str("#endif");
    config.trailer = Some(checks);
    base_sixteen(&generate(&source, config))
}

/// Adds a comment in lines of moderate length.
fn comment(source: &mut String, text: &str) {
    let mut line = String::from("///");
    for word in text.split_whitespace() {
        if line.len() + word.len() > 98 {
            let _ = writeln!(source, "{line}");
            line.truncate(3);
        }
        let _ = write!(line, " {word}");
    }
    if line.len() > 3 {
        let _ = writeln!(source, "{line}");
    }
}

fn config() -> Config {
    let mut config = Config {
        language: Language::C,
        style: Style::Tag,
        header: Some(HEADER.to_owned()),
        include_guard: Some("ROOST_H".to_owned()),
        no_includes: true,
        // Both are the compiler's own: no C library is needed.
        sys_includes: vec!["stddef.h".to_owned(), "stdint.h".to_owned()],
        documentation_style: DocumentationStyle::C99,
        usize_is_size_t: true,
        ..Config::default()
    };
    config.export.rename = HashMap::new();
    config
}

fn generate(source: &str, config: Config) -> String {
    let folder = tempfile::tempdir().expect("temporary folder");
    let file = folder.path().join("abi.rs");
    fs::write(&file, source).expect("temporary file");
    let bindings = Builder::new().with_config(config).with_src(file).generate();
    let mut text = Vec::new();
    bindings.expect("cbindgen takes what build.rs lists").write(&mut text);
    String::from_utf8(text).expect("the header is text")
}

/// Writes numbers above 9 to base sixteen, as the specification does; cbindgen knows ten only.
fn base_sixteen(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let number = line.strip_prefix("#define ").and_then(|rest| rest.split_once(' '));
        let parsed = number.and_then(|(name, value)| {
            let digits = value.trim_end_matches(|letter: char| letter.is_alphabetic());
            let number: u64 = digits.parse().ok()?;
            Some((name, number, &value[digits.len()..])).filter(|_| number > 9)
        });
        let _ = match parsed {
            Some((name, number, suffix)) => writeln!(out, "#define {name} {number:#x}{suffix}"),
            None => writeln!(out, "{line}"),
        };
    }
    out
}

/// `NativeBoot` as `native_boot`.
fn snake(name: &str) -> String {
    let mut text = String::new();
    for (index, letter) in name.char_indices() {
        if index > 0 && letter.is_uppercase() {
            text.push('_');
        }
        text.extend(letter.to_lowercase());
    }
    text
}
