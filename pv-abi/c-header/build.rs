//! Lists what of pv-abi goes into the C header: names and comments from its source, and for each
//! value an expression that the compiler evaluates.

use quote::ToTokens;
use std::{env, error::Error, fmt::Write, fs, path::Path};
use syn::{
    Attribute, Expr, Field, Fields, Ident, Item, ItemConst, Token, Type, Visibility, braced,
    parse::{Parse, ParseStream},
};

/// A module whose constants are listed: its file, the module's name inside the file, its path,
/// and what the names start with in C.
const MODULES: &[(&str, Option<&str>, &str, &str)] = &[
    ("elf_note", None, "elf_note", "NOTE_"),
    ("ext", None, "ext", ""),
    ("cpuid", None, "cpuid", "CPUID_"),
    ("msr", None, "msr", "MSR_"),
    ("msr", Some("arch"), "msr::arch", "MSR_"),
    ("msr", Some("x2apic"), "msr::x2apic", "X2APIC_"),
    ("ext", Some("msr"), "ext::msr", "EXT_MSR_"),
    ("pvcs", Some("flags"), "pvcs::flags", "PVCS_"),
    ("pvcs", Some("vector"), "pvcs::vector", "PVCS_VECTOR_"),
    ("pvcs", Some("offset"), "pvcs::offset", "PVCS_OFFSET_"),
    ("selectors", None, "selectors", "SEL_"),
    ("event", None, "event", "EVENT_"),
    ("event", Some("pf"), "event::pf", "PF_"),
    ("ext", Some("event"), "ext::event", "EXT_EVENT_"),
    ("hypercall", None, "hypercall", "HC_"),
    ("ext", Some("call"), "ext::call", "CALL_"),
    ("ext", Some("shutdown"), "ext::shutdown", "SHUTDOWN_"),
    ("ext/devices", None, "ext::devices", "DEVICES_"),
    ("ext/counter", None, "ext::counter", "COUNTER_"),
];

/// Structures: file, path of the module, name, and what their constants start with in C.
const STRUCTURES: &[(&str, &str, &str, &str)] = &[
    ("elf_note", "elf_note", "ElfNote", "NOTE_"),
    ("pvcs", "pvcs", "Pvcs", "PVCS_"),
    ("ext/boot", "ext", "Span", "SPAN_"),
    ("ext/boot", "ext", "NativeBoot", "BOOT_"),
];

/// Constants of Rust's side alone.
const LEFT_OUT: &[&str] = &["SPARE_FRAMES", "LEAF", "LEAF_END"];

fn main() -> Result<(), Box<dyn Error>> {
    let source = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../src");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed=build.rs");
    let read = |file: &str| -> Result<Vec<Item>, Box<dyn Error>> {
        let text = fs::read_to_string(source.join(file).with_extension("rs"))?;
        Ok(syn::parse_file(&text)?.items)
    };
    let mut list = List::default();
    for (file, inner, path, prefix) in MODULES {
        let mut items = read(file)?;
        if let Some(inner) = inner {
            items = module(items, inner).ok_or(format!("{file} has no module {inner}"))?;
        }
        for item in &items {
            list.take(item, path, prefix)?;
        }
    }
    for (file, path, name, prefix) in STRUCTURES {
        for item in &read(file)? {
            list.take_structure(item, path, name, prefix);
        }
    }
    let List { constants, structures } = list;
    let text = format!(
        "const CONSTANTS: &[Constant] = &[\n{constants}];\n\
         const STRUCTURES: &[Structure] = &[\n{structures}];\n"
    );
    fs::write(Path::new(&env::var("OUT_DIR")?).join("list.rs"), text)?;
    Ok(())
}

/// The items of the module `name`.
fn module(items: Vec<Item>, name: &str) -> Option<Vec<Item>> {
    items.into_iter().find_map(|item| match item {
        Item::Mod(module) if module.ident == name => module.content.map(|(_, items)| items),
        _ => None,
    })
}

/// The lists, as Rust expressions.
#[derive(Default)]
struct List {
    constants: String,
    structures: String,
}

impl List {
    fn constant(&mut self, name: &str, kind: &str, docs: &str, value: &str) {
        let _ = writeln!(
            self.constants,
            "Constant {{ name: {name:?}, kind: {kind:?}, docs: {docs:?}, value: {value} }},"
        );
    }

    /// Lists a constant, the flags of a `bitflags!`, or the numbers of `counter::Reason`.
    fn take(&mut self, item: &Item, path: &str, prefix: &str) -> Result<(), Box<dyn Error>> {
        match item {
            Item::Const(item) => self.take_constant(item, path, prefix),
            Item::Macro(item)
                if item.mac.path.to_token_stream().to_string().contains("bitflags") =>
            {
                let Flags(name, flags) = item.mac.parse_body()?;
                for (attributes, flag) in flags {
                    let value = format!("pv_abi::{path}::{name}::{flag}.bits() as u64");
                    self.constant(&format!("FEATURE_{flag}"), "u32", &docs(&attributes), &value);
                }
            }
            Item::Enum(item) => {
                for variant in &item.variants {
                    let (name, of) = (&variant.ident, &item.ident);
                    let value = format!("pv_abi::{path}::{of}::{name}.counter()");
                    let name = format!("{prefix}{}", screaming(&name.to_string()));
                    self.constant(&name, "u64", &docs(&variant.attrs), &value);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn take_constant(&mut self, item: &ItemConst, path: &str, prefix: &str) {
        let public = matches!(item.vis, Visibility::Public(_));
        let name = item.ident.to_string();
        if public && !LEFT_OUT.contains(&name.as_str()) {
            self.number(&name, &item.ty, &item.attrs, path, prefix);
        }
    }

    /// Lists a constant if it is a number or an address.
    fn number(
        &mut self,
        name: &str,
        kind: &Type,
        attributes: &[Attribute],
        path: &str,
        prefix: &str,
    ) {
        let kind = kind.to_token_stream().to_string();
        let (kind, value) = match kind.as_str() {
            "u64" => (kind, format!("pv_abi::{path}::{name}")),
            "u8" | "u16" | "u32" | "usize" => (kind, format!("pv_abi::{path}::{name} as u64")),
            "Gpa" => ("u64".to_owned(), format!("pv_abi::{path}::{name}.0")),
            _ => return,
        };
        self.constant(&format!("{prefix}{name}"), &kind, &docs(attributes), &value);
    }

    /// Lists the structure `name` and its constants.
    fn take_structure(&mut self, item: &Item, path: &str, name: &str, prefix: &str) {
        match item {
            Item::Struct(item) if item.ident == name => {
                let Fields::Named(fields) = &item.fields else { return };
                let mut fields_of = String::new();
                let mut offsets = String::new();
                for Field { attrs, ident, ty, .. } in &fields.named {
                    let Some(field) = ident else { continue };
                    let kind = ty.to_token_stream().to_string();
                    let _ = write!(fields_of, "({:?}, \"pub {field}: {kind},\"), ", docs(attrs));
                    let offset = format!("core::mem::offset_of!(pv_abi::{path}::{name}, {field})");
                    let _ = write!(offsets, "(\"{field}\", {offset}), ");
                }
                let _ = writeln!(
                    self.structures,
                    "Structure {{ name: {name:?}, docs: {:?}, size: size_of::<pv_abi::{path}::{name}>(), \
                     fields: &[{fields_of}], offsets: &[{offsets}] }},",
                    docs(&item.attrs)
                );
            }
            Item::Impl(item) if item.self_ty.to_token_stream().to_string() == name => {
                for item in &item.items {
                    let syn::ImplItem::Const(item) = item else { continue };
                    let path = format!("{path}::{name}");
                    self.number(&item.ident.to_string(), &item.ty, &item.attrs, &path, prefix);
                }
            }
            _ => {}
        }
    }
}

/// The inside of a `bitflags!`: the structure's name, and the flags with their comments.
struct Flags(Ident, Vec<(Vec<Attribute>, Ident)>);

impl Parse for Flags {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        input.call(Attribute::parse_outer)?;
        input.parse::<Visibility>()?;
        input.parse::<Token![struct]>()?;
        let name = input.parse()?;
        input.parse::<Token![:]>()?;
        input.parse::<Type>()?;
        let inside;
        braced!(inside in input);
        let mut flags = Vec::new();
        while !inside.is_empty() {
            let attributes = inside.call(Attribute::parse_outer)?;
            inside.parse::<Token![const]>()?;
            flags.push((attributes, inside.parse()?));
            inside.parse::<Token![=]>()?;
            inside.parse::<Expr>()?;
            inside.parse::<Token![;]>()?;
        }
        Ok(Self(name, flags))
    }
}

/// The first paragraph of the comment in `attributes` on one line, without the marks of links.
fn docs(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| {
        let value = &attribute.meta.require_name_value().ok()?.value;
        let Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = value else { return None };
        Some(text.value().trim().to_owned())
    });
    let mut text = lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    for mark in ["[`", "`]", "`", "crate::", "super::", "Self::"] {
        text = text.replace(mark, "");
    }
    text
}

/// `PageFault` as `PAGE_FAULT`.
fn screaming(name: &str) -> String {
    let mut text = String::new();
    for (index, letter) in name.char_indices() {
        if index > 0 && letter.is_uppercase() {
            text.push('_');
        }
        text.extend(letter.to_uppercase());
    }
    text
}
