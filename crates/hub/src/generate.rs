//! Text for people and for `kubectl`: pure functions from values to files, compared with goldens in deploy/.

pub mod agent_manifest;
pub mod formats;
pub mod kubeconfig;
#[cfg(test)]
mod rbac;
mod shell;
mod terraform;
mod tkestack;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kube::CustomResourceExt as _;
    use serde_json::Value;

    /// Reads YAML documents back, with the parser that kube has for kubeconfigs: its extensions hold any value.
    pub(crate) fn parse(text: &str) -> Vec<Value> {
        let mut documents = vec![String::new()];
        for line in text.lines() {
            if line == "---" {
                documents.push(String::new());
            } else if let Some(document) = documents.last_mut() {
                document.push_str("    ");
                document.push_str(line);
                document.push('\n');
            }
        }
        let holds_something = |text: &&String| {
            text.lines().any(|line| !line.trim().is_empty() && !line.trim().starts_with('#'))
        };
        documents
            .iter()
            .filter(holds_something)
            .map(|document| {
                let text =
                    format!("apiVersion: v1\nkind: Config\nextensions:\n- name: x\n  extension:\n{document}");
                let config = kube::config::Kubeconfig::from_yaml(&text)
                    .unwrap_or_else(|error| panic!("{error}\n{text}"));
                config.extensions.unwrap().remove(0).extension
            })
            .collect()
    }

    /// Compares a file in deploy/ with what it has to be, or writes it if `UPDATE_GOLDEN` is set.
    pub(crate) fn golden(file: &str, wanted: &str) {
        golden_in("deploy", file, wanted);
    }

    /// The same with a file of another folder.
    pub(crate) fn golden_in(folder: &str, file: &str, wanted: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder).join(file);
        #[expect(clippy::disallowed_methods, reason = "a switch of the test, not of the product")]
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, wanted).unwrap();
        }
        let same = std::fs::read_to_string(&path).unwrap() == wanted;
        assert!(same, "{folder}/{file} differs; bless it with UPDATE_GOLDEN=1");
    }

    #[test]
    fn the_crds_in_deploy_are_those_of_the_api() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds.yaml");
        let mut deployed: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut wanted = serde_json::json!([
            api::cluster::ManagedCluster::crd(),
            api::registration::ClusterRegistrationRequest::crd()
        ]);
        // crdgen leaves out those that say nothing.
        without_defaults(&mut deployed);
        without_defaults(&mut wanted);
        assert_eq!(deployed["items"], wanted, "write it anew with: make manifests");
    }

    fn without_defaults(value: &mut Value) {
        if let Some(fields) = value.as_object_mut() {
            if fields.contains_key("type") {
                fields.remove("default");
            }
            fields.values_mut().for_each(without_defaults);
        }
        value.as_array_mut().into_iter().flatten().for_each(without_defaults);
    }

    /// The objects of a file that was written by hand.
    pub(crate) fn deployed(file: &str) -> Vec<Value> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(file);
        parse(&std::fs::read_to_string(path).unwrap())
    }

    #[test]
    fn no_role_in_deploy_holds_a_star_or_a_right_to_become_more() {
        for object in deployed("hub.yaml").into_iter().chain(deployed("example-access.yaml")) {
            let cluster_wide = object["kind"] == "ClusterRole";
            for rule in object["rules"].as_array().into_iter().flatten() {
                let text = rule.to_string();
                assert!(!text.contains('*'), "{text}");
                for verb in ["escalate", "bind", "impersonate", "deletecollection"] {
                    assert!(!text.contains(&format!("\"{verb}\"")), "{text}");
                }
                assert!(!cluster_wide || !text.contains("secrets"), "no Secrets of the whole parent: {text}");
            }
        }
    }

    #[test]
    fn the_apiservices_verify_the_hub_and_are_those_that_get_its_ca() {
        let objects = deployed("hub.yaml");
        let services: Vec<_> = objects.iter().filter(|object| object["kind"] == "APIService").collect();
        let names: Vec<_> =
            services.iter().map(|service| service["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, crate::certificates::API_SERVICES);
        assert!(services.iter().all(|service| service["spec"].get("insecureSkipTLSVerify").is_none()));
    }
}
