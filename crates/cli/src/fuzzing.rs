//! Openings for the fuzz targets (`fuzz/`): the kubeconfig writer without files around it.

use api::names::ClusterId;
use serde_json::Value;

use crate::args::Global;
use crate::kubeconfig;

/// What `kubeconfig NAME` makes of the text of a kubeconfig: the value, and the text that is written; `None` if it
/// refuses.
pub fn kubeconfig(source: &str, global: &Global, name: &str, id: &ClusterId) -> Option<(Value, String)> {
    let source = kube::config::Kubeconfig::from_yaml(source).ok()?;
    let value = kubeconfig::derived(&source, global, name, id).ok()?;
    let text = kubeconfig::text(name, &value);
    Some((value, text))
}
