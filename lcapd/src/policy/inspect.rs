//! What a module says of itself: `lcap policy inspect FILE.so`.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};

use lcap_ffi::policy as abi;
use serde::Serialize;
use serde_json::Value;

use super::{Module, PolicyError, loader};

/// A module's word on itself. Its `Display` is for people, its `Serialize` for programs.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Its file.
    pub path: PathBuf,
    /// Its name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// Version of the contract that it was built for.
    pub abi: u32,
    /// Size of its table.
    pub table_bytes: u32,
    /// One instance serves all MDTs of a stream.
    pub shared: bool,
    /// It keeps no pointer to a record, so what it holds can be moved.
    pub no_pointers: bool,
    /// It emits what it was given and nothing else.
    pub verbatim: bool,
    /// It has a say in clearing.
    pub limits_clearing: bool,
    /// It has figures of its own.
    pub own_stats: bool,
    /// What it does.
    pub summary: String,
    /// JSON Schema of its options.
    pub options: Value,
}

/// Loads a module and tells what it is. Owner and mode are checked as for lcapd.
///
/// # Errors
/// What [`super::Loader::load`] gives for it.
pub fn inspect(path: &Path) -> Result<Inspection, PolicyError> {
    Ok(Inspection::of(&*loader::load_file(path)?))
}

impl Inspection {
    /// A loaded module's word on itself.
    pub fn of(module: &Module) -> Self {
        let ops = &module.ops;
        Self {
            path: module.path.clone(),
            name: module.name.clone(),
            version: module.version.clone(),
            abi: ops.abi,
            table_bytes: ops.size,
            shared: ops.flags & abi::SHARED != 0,
            no_pointers: ops.flags & abi::NO_POINTERS != 0,
            verbatim: module.is_verbatim(),
            limits_clearing: ops.clear.is_some(),
            own_stats: ops.stats.is_some(),
            summary: module.summary.clone(),
            options: module.schema.clone(),
        }
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}: {}", self.name, self.version, self.summary)?;
        writeln!(f, "  file       {}", self.path.display())?;
        writeln!(f, "  ABI        {}, table of {} bytes", self.abi, self.table_bytes)?;
        let instance = if self.shared { "one per stream" } else { "one per stream and MDT" };
        writeln!(f, "  instances  {instance}")?;
        let makes = if self.verbatim { "as they came" } else { "also of its own making" };
        writeln!(f, "  records    {makes}")?;
        let clearing = if self.limits_clearing { "has a say" } else { "no say" };
        writeln!(f, "  clearing   {clearing}")?;
        let required = self.options.get("required").and_then(Value::as_array);
        let is_required = |key: &str| required.is_some_and(|list| list.iter().any(|k| k == key));
        let options = self.options.get("properties").and_then(Value::as_object);
        match options.filter(|options| !options.is_empty()) {
            None => writeln!(f, "  options    none")?,
            Some(options) => {
                writeln!(f, "  options")?;
                for (name, schema) in options {
                    write!(f, "    {name}: {}", kind(schema))?;
                    if is_required(name) {
                        write!(f, ", required")?;
                    }
                    if let Some(default) = schema.get("default") {
                        write!(f, ", default {default}")?;
                    }
                    writeln!(f)?;
                    if let Some(text) = schema.get("description").and_then(Value::as_str) {
                        writeln!(f, "        {text}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A schema in a few words.
fn kind(schema: &Value) -> String {
    if let Some(choices) = schema.get("enum").and_then(Value::as_array) {
        let list: Vec<String> = choices.iter().map(Value::to_string).collect();
        return list.join(" | ");
    }
    if let Some(format) = schema.get("format").and_then(Value::as_str) {
        return format.to_owned();
    }
    match schema.get("type") {
        Some(Value::String(name)) if name == "array" => {
            let each = schema.get("items").map_or_else(|| "any".to_owned(), kind);
            format!("list of {each}")
        }
        Some(Value::String(name)) => name.clone(),
        Some(Value::Array(names)) => {
            let list: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
            list.join(" or ")
        }
        _ => "any".to_owned(),
    }
}
