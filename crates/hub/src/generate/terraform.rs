//! A provider block for Terraform and OpenTofu. Pure.
//!
//! Such files are committed, so the token is no part of it: it is a sensitive variable, given by the environment or by a
//! file of variables that stays behind. So the text is the same for each token.

use api::kubeconfig::terraform_variable;
use api::yaml;

use super::kubeconfig::Reached;

/// The text.
pub(super) fn provider(cluster: &Reached<'_>) -> String {
    let variable = terraform_variable(cluster.name);
    let mut out = String::new();
    for line in [
        format!("Cluster {} through the hub. The token is no part of this file: give it as", cluster.name),
        format!("TF_VAR_{variable}, or in a file *.auto.tfvars that is not committed."),
        "With Terraform 1.10 and OpenTofu 1.11 or later, `ephemeral = true` keeps it out of plans too."
            .to_owned(),
    ] {
        // The same comments, with the same promise, as in YAML.
        out.push_str(&yaml::comment(&line));
    }
    let description = quoted(&format!("Token of the hub for cluster {}", cluster.name));
    out.push_str(&format!(
        "variable \"{variable}\" {{\n  description = {description}\n  type        = string\n  sensitive   = true\n}}\n\n"
    ));
    out.push_str("provider \"kubernetes\" {\n");
    out.push_str("  # For more clusters than one give each an alias.\n");
    out.push_str(&format!("  host                   = {}\n", quoted(cluster.server)));
    if let Some(ca) = cluster.ca_base64() {
        out.push_str(&format!("  cluster_ca_certificate = base64decode({})\n", quoted(&ca)));
    }
    out.push_str(&format!("  token                  = var.{variable}\n}}\n"));
    out
}

/// A quoted template without a template in it
/// (<https://github.com/hashicorp/hcl/blob/main/hclsyntax/spec.md#template-expressions>). ASCII only.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    let mut previous = ' ';
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            // A brace makes a template only behind one of these; written as a number it is none for any reader.
            '{' if matches!(previous, '$' | '%') => out.push_str("\\u007b"),
            ' '..='~' => out.push(character),
            other if u32::from(other) <= 0xffff => out.push_str(&format!("\\u{:04x}", u32::from(other))),
            other => out.push_str(&format!("\\U{:08x}", u32::from(other))),
        }
        previous = character;
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::kubeconfig::tests::EDGE;
    use super::*;

    /// What HCL reads: the string up to its end, and what follows; `None` where a template begins.
    fn read(text: &str) -> Option<(String, &str)> {
        let mut out = String::new();
        let mut rest = text.strip_prefix('"')?.char_indices();
        while let Some((at, character)) = rest.next() {
            match character {
                '"' => return Some((out, &text[at + 2..])),
                '$' | '%' if text[at + 2..].starts_with('{') => return None,
                '\\' => match rest.next()?.1 {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    'u' => out.push(number(&mut rest, 4)?),
                    'U' => out.push(number(&mut rest, 8)?),
                    other @ ('"' | '\\') => out.push(other),
                    _ => return None,
                },
                '\n' => return None,
                other => out.push(other),
            }
        }
        None
    }

    fn number(rest: &mut std::str::CharIndices<'_>, digits: usize) -> Option<char> {
        let hex: String = rest.by_ref().take(digits).map(|(_, digit)| digit).collect();
        char::from_u32(u32::from_str_radix(&hex, 16).ok()?)
    }

    #[test]
    fn a_string_is_no_template() {
        for text in
            ["${file(\"/etc/passwd\")}", "%{ if true }", "$${a}", "a\"\n}\nresource \"x\" {", "\\", "é😀", ""]
        {
            assert_eq!(read(&quoted(text)), Some((text.to_owned(), "")), "{text}");
        }
    }

    #[test]
    fn a_variable_is_an_identifier_of_hcl_and_of_a_shell() {
        for (name, variable) in
            [("edge-1", "towline_edge_1_token"), ("1a", "towline_1a_token"), ("a\"b", "towline_a_b_token")]
        {
            assert_eq!(terraform_variable(name), variable);
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_out_of_its_place(
            name in "\\PC{0,12}|[${}%\"\\\\\n\r#/*a-z]{0,12}",
            server in "\\PC{0,12}|[${}%\"\\\\\n\r#/*a-z]{0,12}",
        ) {
            let made = provider(&Reached { name: &name, server: &server, ..EDGE });
            let usual = provider(&EDGE);
            prop_assert!(made.is_ascii());
            prop_assert_eq!(made.lines().count(), usual.lines().count());
            let value = |field: &str| {
                let line = made.lines().find(|line| line.trim_start().starts_with(field)).unwrap();
                read(line.split_once("= ").unwrap().1)
            };
            prop_assert_eq!(value("host"), Some((server, "")));
            prop_assert_eq!(value("description"), Some((format!("Token of the hub for cluster {name}"), "")));
        }
    }
}
