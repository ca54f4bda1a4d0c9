//! Helm, with a tiny chart: a ConfigMap, and a pod that tests it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::images::BUSYBOX;
use tests::kubectl::Kubectl;
use tests::towline::repository;

use crate::stage::Stage;
use crate::tool::Report;

/// For a pod that has to start.
const TIME_LIMIT: Duration = Duration::from_secs(90);

pub(crate) async fn run(stage: &Stage, program: &Path, name: &str) -> Report {
    let mut report = Report::default();
    let client = Helm {
        helm: stage.at_gateway().with_binary(program).with_time_limit(TIME_LIMIT),
        child: stage.child().clone(),
        chart: repository().join("tests/clients/chart").display().to_string(),
        release: name.replace(['_', '.'], "-"),
    };
    report.enter("install", client.install().await);
    report.enter("list", client.list().await);
    report.enter("upgrade", client.upgrade().await);
    if stage.without_a_node().is_none() {
        report.enter("test", client.test().await);
    }
    report.enter("uninstall", client.uninstall().await);
    report
}

struct Helm {
    helm: Kubectl,
    /// Reads what is in the child.
    child: Kubectl,
    chart: String,
    release: String,
}

impl Helm {
    async fn install(&self) -> Result<()> {
        let image = format!("image={BUSYBOX}");
        self.helm.ok(&["install", &self.release, &self.chart, "--set", &image, "--wait"]).await?;
        self.holds("first").await
    }

    async fn list(&self) -> Result<()> {
        let listed: Value = serde_json::from_str(&self.helm.ok(&["list", "-o", "json"]).await?)?;
        let ours = listed.as_array().into_iter().flatten().find(|item| item["name"] == self.release.as_str());
        ensure!(ours.is_some_and(|item| item["status"] == "deployed"), "{listed}");
        Ok(())
    }

    async fn upgrade(&self) -> Result<()> {
        let set = ["--reuse-values", "--set", "key=second"];
        self.helm.ok(&[&["upgrade", &self.release, &self.chart][..], &set].concat()).await?;
        self.holds("second").await
    }

    async fn test(&self) -> Result<()> {
        let said = self.helm.ok(&["test", &self.release, "--logs"]).await?;
        ensure!(said.contains("Succeeded") && said.contains("the key is second"), "{said}");
        Ok(())
    }

    async fn uninstall(&self) -> Result<()> {
        self.helm.ok(&["uninstall", &self.release]).await?;
        let left = self.child.ok(&["get", "configmap,secret", "-o", "name"]).await?;
        ensure!(!left.contains(&self.release), "{left}");
        Ok(())
    }

    /// What stands in the child, read by another client.
    async fn holds(&self, value: &str) -> Result<()> {
        let found = self.child.ok(&["get", "configmap", &self.release, "-o", "jsonpath={.data.key}"]).await?;
        ensure!(found == value, "the child holds {found:?}");
        Ok(())
    }
}
