//! Settings as text: what holds and where it comes from (`config check`), and the reference (`config reference`).
//! Both are valid TOML.

use std::fmt::Write as _;

use super::given::{Source, environment_name};
use super::loader::{Effective, SettingInfo};
use super::settings::{SECTIONS, section_doc};

/// The settings in effect, each with its source.
#[must_use]
pub fn render_effective(effective: &[Effective]) -> String {
    let mut lines: Vec<(Option<&str>, String, String)> = Vec::new();
    for setting in effective {
        let (section, name) = split_key(setting.info.key);
        // A derived default (a port above 65535) is refused before it could be shown.
        lines.push((section, format!("{name} = {}", setting.value), setting.source.to_string()));
    }
    let width = lines.iter().map(|(_, line, _)| line.chars().count()).max().unwrap_or(0).min(48);
    let mut out = String::new();
    let mut section_before = None;
    for (section, line, source) in lines {
        open_section(&mut out, section, &mut section_before);
        push_line(&mut out, format_args!("{line:width$}  # {source}"));
    }
    out
}

/// Every setting with its meaning, type, range, variable and default, as a file in which all are commented out.
#[must_use]
pub fn render_reference(defaults: &[Effective]) -> String {
    let mut out = String::from(
        "# Settings of chronik-server. Precedence: defaults, this file (--config), CHRONIK_* variables, flags.\n",
    );
    let mut section_before = None;
    for setting in defaults {
        assert!(setting.source == Source::Default, "the reference shows defaults only");
        let (section, name) = split_key(setting.info.key);
        if open_section(&mut out, section, &mut section_before) {
            for line in section_doc(section.unwrap_or_default()) {
                push_line(&mut out, format_args!("#{line}"));
            }
        }
        out.push('\n');
        for line in setting.info.doc {
            push_line(&mut out, format_args!("#{line}"));
        }
        push_line(&mut out, format_args!("# {}", facts_of(&setting.info)));
        push_line(&mut out, format_args!("#{name} = {}", setting.value));
    }
    out
}

fn facts_of(info: &SettingInfo) -> String {
    let mut facts = info.type_name.to_owned();
    if let Some(range) = info.range {
        facts = format!("{facts} from {} to {}", range.min, range.max);
    }
    if let Some(unit) = info.unit() {
        facts = format!("{facts} ({unit})");
    }
    format!("{facts}; {}", environment_name(info.key))
}

fn split_key(key: &'static str) -> (Option<&'static str>, &'static str) {
    match key.split_once('.') {
        Some((section, name)) => (Some(section), name),
        None => (None, key),
    }
}

/// Writes the table's header when another table begins; says whether it did.
fn open_section(
    out: &mut String,
    section: Option<&'static str>,
    before: &mut Option<&'static str>,
) -> bool {
    if section == *before {
        return false;
    }
    *before = section;
    if let Some(section) = section {
        assert!(SECTIONS.contains(&section), "[{section}] is declared");
        push_line(out, format_args!("\n[{section}]"));
    }
    true
}

fn push_line(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let written = writeln!(out, "{line}");
    assert!(written.is_ok(), "text grows in memory");
}
