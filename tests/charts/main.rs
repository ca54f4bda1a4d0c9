//! The charts, without a cluster: what Helm makes of values good and bad (`hub.yaml` and `agent.yaml` beside this file), read
//! back object by object as Kubernetes would read it, and compared with what the code says: the hub's own agent.yaml, its
//! flags, the metrics.

mod case;
mod object;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use case::{Case, Helm, read};
use serde_json::{Value, json};

/// Flags and variables that a chart has no value for, and why.
const NOT_IN_A_CHART: [&str; 7] = [
    "TOWLINE_CONFIG", // the hub's chart makes it of its values; an agent has nothing to put there
    "TOWLINE_KUBECONFIG", // a pod needs none
    "TOWLINE_HUB_ID", // the pod's name, from HOSTNAME
    "HOSTNAME",       // Kubernetes sets it
    "TOWLINE_REGISTRATION_DIR", // where the Secret is mounted
    "TOWLINE_KUBE_CA_FILE", // where Kubernetes mounts it
    "TOWLINE_TOKEN_FILE", // the same
];

#[test]
fn the_hubs_values_render_or_are_refused_with_a_remedy() -> Result<()> {
    case::try_all("towline-hub", "hub.yaml")
}

#[test]
fn the_agents_values_render_or_are_refused_with_a_remedy() -> Result<()> {
    case::try_all("towline-agent", "agent.yaml")
}

/// deploy/agent.example.yaml is what the hub generates; a test of the hub compares them.
#[test]
fn the_agent_chart_installs_what_an_invitation_does() -> Result<()> {
    let mut wanted = object::by_name(object::parse(&read("deploy/agent.example.yaml")?)?);
    let registration = "Secret/clusternet-agent-cluster-registration";
    let decoded = |key: &str| -> Result<String> {
        let text = wanted[registration]["data"][key].as_str().with_context(|| format!("no {key}"))?;
        Ok(String::from_utf8(STANDARD.decode(text)?)?)
    };
    let values = json!({
        "renderFor": "kubectl", "namespace": { "create": true },
        "image": { "registry": "registry.example.com", "repository": "towline-agent", "tag": "0.1.0" },
        "impersonation": { "groups": ["developers"] },
        "registration": {
            "parentURL": decoded("parentURL")?, "ca": decoded("ca.crt")?, "clusterName": decoded("clusterName")?,
            "invitation": decoded("invitation")?, "invitationSecret": decoded("invitationSecret")?,
            "regToken": decoded("regToken")?, "expires": decoded("expires")?,
        },
    });
    let case = Case::of(values);
    let mut found = object::by_name(case.objects(&Helm::newest()?, "towline-agent")?);
    for objects in [&mut wanted, &mut found] {
        objects.values_mut().for_each(object::sort_what_has_no_order);
    }
    let names = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&wanted));
    for (name, wanted) in &wanted {
        if let Some(at) = object::difference(&found[name], wanted) {
            bail!("{name}: the chart's and the hub's{at}");
        }
    }
    Ok(())
}

#[test]
fn every_flag_has_a_value_in_its_chart() -> Result<()> {
    for (chart, sources, templates) in [
        (
            "towline-hub",
            &["crates/hub/src/config.rs", "crates/hub/src/limits.rs", "crates/runtime/src/traces.rs"][..],
            "charts/towline-hub/templates/_environment.tpl",
        ),
        (
            "towline-agent",
            &["crates/agent/src/config.rs", "crates/runtime/src/traces.rs"],
            "charts/towline-agent/templates/_helpers.tpl",
        ),
    ] {
        let template = read(templates)?;
        let checks = read(&format!("charts/{chart}/templates/_checks.tpl"))?;
        let mut seen = 0;
        for source in sources {
            let source = read(source)?;
            let variables = source.split("env = \"").skip(1).filter_map(|rest| rest.split('"').next());
            for variable in variables.filter(|variable| !NOT_IN_A_CHART.contains(variable)) {
                seen += 1;
                let short = variable.trim_start_matches("TOWLINE_");
                let flag = short.to_lowercase().replace('_', "-");
                // As a variable, or as a key of the file that is followed.
                let spellings = [short, variable, &flag].map(|name| format!("\"{name}\""));
                ensure!(
                    spellings.iter().any(|name| template.contains(name)),
                    "{variable} has no value in {chart}: add one to {templates}, or a reason to NOT_IN_A_CHART"
                );
                ensure!(
                    checks.contains(&format!("\"{flag}\"")),
                    "extraArgs of {chart} may set --{flag} behind the back of its value: add it to _checks.tpl"
                );
            }
        }
        ensure!(seen > 4, "{chart}: only {seen} flags were found");
    }
    Ok(())
}

#[test]
fn every_value_of_a_schema_has_a_default() -> Result<()> {
    for chart in ["towline-hub", "towline-agent"] {
        let values: Value = serde_saphyr::from_str(&read(&format!("charts/{chart}/values.yaml"))?)?;
        let schema: Value = serde_json::from_str(&read(&format!("charts/{chart}/values.schema.json"))?)?;
        defaults(&schema, &values, chart)?;
    }
    Ok(())
}

fn defaults(schema: &Value, value: &Value, path: &str) -> Result<()> {
    // Free maps, and the policy, whose absence means something.
    if path.ends_with(".policy") || path.ends_with(".resources") || path.ends_with(".affinity") {
        return Ok(());
    }
    let Some(properties) = schema["properties"].as_object() else { return Ok(()) };
    let open = path.ends_with(".global");
    ensure!(open || schema["additionalProperties"] == json!(false), "{path} of the schema is open");
    for (key, schema) in properties {
        let here = value.get(key).with_context(|| format!("{path}.{key} has no default in values.yaml"))?;
        defaults(schema, here, &format!("{path}.{key}"))?;
    }
    Ok(())
}

#[test]
fn alerts_and_dashboards_read_metrics_that_exist_and_alerts_have_runbooks() -> Result<()> {
    let runbooks = read("docs/runbooks.md")?;
    for (chart, crate_name) in [("towline-hub", "hub"), ("towline-agent", "agent")] {
        let source = read(&format!("crates/{crate_name}/src/metrics.rs"))?;
        let prefix = format!("towline_{crate_name}_");
        let registered = source.split("registry.register(").skip(1);
        let names: BTreeSet<String> = registered
            .filter_map(|rest| rest.split('"').nth(1))
            .flat_map(|name| [format!("{prefix}{name}"), format!("{prefix}{name}_total")])
            .collect();
        ensure!(names.len() > 8, "only {names:?} were found");
        for file in ["alerts.yaml", "dashboard.json"] {
            let text = read(&format!("charts/{chart}/files/{file}"))?;
            let used: BTreeSet<&str> = text
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .filter(|word| word.starts_with(&prefix))
                .collect();
            ensure!(used.len() > 3, "{chart} {file}: only {used:?} were found");
            for name in used {
                ensure!(names.contains(name), "{chart} {file} reads {name}, which nobody writes");
            }
        }
        let alerts: Value = serde_saphyr::from_str(&read(&format!("charts/{chart}/files/alerts.yaml"))?)?;
        let rules = alerts["groups"][0]["rules"].as_array().context("no rules")?;
        for rule in rules {
            let name = rule["alert"].as_str().context("no alert")?;
            let url = format!("docs/runbooks.md#{}", name.to_lowercase());
            assert_eq!(rule["annotations"]["runbook_url"], json!(url), "{name}");
            ensure!(runbooks.contains(&format!("\n### {name}\n")), "docs/runbooks.md has no section {name}");
        }
        let headings = runbooks.matches("\n### ").count();
        ensure!(headings >= rules.len(), "{headings} runbooks");
    }
    Ok(())
}

#[test]
fn charts_bear_the_version_of_the_programs() -> Result<()> {
    for chart in ["towline-hub", "towline-agent"] {
        let about: Value = serde_saphyr::from_str(&read(&format!("charts/{chart}/Chart.yaml"))?)?;
        for key in ["version", "appVersion"] {
            assert_eq!(about[key], json!(env!("CARGO_PKG_VERSION")), "{chart}: {key}");
        }
        let images = about["annotations"]["artifacthub.io/images"].as_str().context("no images")?;
        ensure!(images.contains(concat!("towline:", env!("CARGO_PKG_VERSION"))), "{chart}: {images}");
    }
    Ok(())
}
