//! Which execution provider ran which node, from the runtime's own record of a run.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{EngineError, Generator, Graphs, Interface, Options, Runtime, session::Making};

/// The nodes of one graph that one provider ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub graph: String,
    /// By the runtime's name for it, such as `CPUExecutionProvider`.
    pub provider: String,
    pub nodes: usize,
    /// How many of each operator.
    pub operators: BTreeMap<String, usize>,
    /// Microseconds in each operator, in all runs on record together; for a GPU, those of launching it.
    #[serde(default)]
    pub microseconds: BTreeMap<String, u64>,
}

/// Runs steps of a model and tells who ran its nodes, and for how long.
///
/// # Errors
/// If the model does not load or run, or the record cannot be read.
pub fn placements(
    runtime: &Runtime,
    graphs: &Graphs,
    interface: Interface,
    options: &Options,
) -> Result<Vec<Placement>, EngineError> {
    let unreadable = |graph, reason: String| EngineError::Run { graph, reason };
    let scratch = tempfile::tempdir().map_err(|e| unreadable("condition", e.to_string()))?;
    let making = Making { profile: Some(scratch.path()), ..Making::new(runtime, options) };
    let mut found = Vec::new();
    for (graph, path) in Generator::make(making, graphs, interface)?.profile()? {
        let record = std::fs::read(&path).map_err(|e| unreadable(graph, e.to_string()))?;
        let read = read(graph, &record).map_err(|e| unreadable(graph, e.to_string()))?;
        found.extend(read);
    }
    Ok(found)
}

/// What is of interest of an event in the runtime's trace.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    dur: u64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
struct Arguments {
    op_name: Option<String>,
    provider: Option<String>,
}

fn read(graph: &str, record: &[u8]) -> serde_json::Result<Vec<Placement>> {
    let events: Vec<Event> = serde_json::from_slice(record)?;
    let mut nodes = BTreeMap::<String, BTreeSet<(String, String)>>::new();
    let mut spent = BTreeMap::<String, BTreeMap<String, u64>>::new();
    for Event { cat, name, dur, args } in events {
        let (Some(operator), Some(provider)) = (args.op_name, args.provider) else { continue };
        if cat == "Node" && name.ends_with("_kernel_time") && !provider.is_empty() {
            *spent.entry(provider.clone()).or_default().entry(operator.clone()).or_default() += dur;
            nodes.entry(provider).or_default().insert((name, operator));
        }
    }
    let placement = |(provider, nodes): (String, BTreeSet<(String, String)>)| {
        let mut operators = BTreeMap::new();
        for (_, operator) in &nodes {
            *operators.entry(operator.clone()).or_default() += 1;
        }
        let microseconds = spent.remove(&provider).unwrap_or_default();
        let graph = graph.to_owned();
        Placement { graph, provider, nodes: nodes.len(), operators, microseconds }
    };
    Ok(nodes.into_iter().map(placement).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_counts_once_for_the_provider_that_ran_it() {
        let record = br#"[
            {"cat":"Session","name":"model_loading_array","args":{}},
            {"cat":"Node","name":"conv_1_kernel_time","dur":5,"args":{"op_name":"Conv","provider":"CUDAExecutionProvider"}},
            {"cat":"Node","name":"conv_1_kernel_time","dur":5,"args":{"op_name":"Conv","provider":"CUDAExecutionProvider"}},
            {"cat":"Node","name":"conv_2_kernel_time","args":{"op_name":"Conv","provider":"CUDAExecutionProvider"}},
            {"cat":"Node","name":"shape_3_kernel_time","args":{"op_name":"Shape","provider":"CPUExecutionProvider"}},
            {"cat":"Node","name":"conv_2_fence_before","args":{"op_name":"Conv"}}
        ]"#;
        let found = read("denoiser", record).unwrap();
        assert_eq!(found[1].microseconds, BTreeMap::from([("Conv".into(), 10)]));
        let of = |p: &Placement| (p.provider.clone(), p.nodes, p.operators.clone());
        assert_eq!(
            found.iter().map(of).collect::<Vec<_>>(),
            [
                ("CPUExecutionProvider".into(), 1, BTreeMap::from([("Shape".into(), 1)])),
                ("CUDAExecutionProvider".into(), 2, BTreeMap::from([("Conv".into(), 2)])),
            ]
        );
    }
}
