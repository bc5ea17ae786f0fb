//! What the admin port is asked to do with the nodes of a cluster: to drain one, and to let it in again.

use std::rc::Rc;

use chronik_engine::ids::NodeId;
use chronik_net::{HttpRequest, HttpResponse};

use super::change::{CHANGE_WAIT_DEFAULT, change_catalog, why_not, within};
use super::join;
use crate::catalog::{Catalog, CatalogCommand, CommandOutcome};
use crate::shell::shard::Shard;

/// Serves a POST on the admin port. Cancel-safe; what was proposed is done.
pub async fn post(shard: &Rc<Shard>, request: &HttpRequest) -> HttpResponse {
    let is_cordoned = match request.path.as_str() {
        "/cluster/drain" => true,
        "/cluster/undrain" => false,
        "/cluster/join" => return join::judge(shard, &request.body),
        _ => {
            let paths = "not found; there are /cluster/drain?node=ID, /cluster/undrain?node=ID and \
                         /cluster/join\n";
            return HttpResponse::text(404, paths);
        }
    };
    let node = request.query.as_deref().and_then(|query| query.strip_prefix("node="));
    let Some(node) = node.and_then(|node| node.parse().ok()).map(NodeId) else {
        return HttpResponse::text(400, "say which node: ?node=ID\n");
    };
    if let Some((status, why)) = refusal(&shard.catalog(), node, is_cordoned) {
        return HttpResponse::text(status, why);
    }
    let command = CatalogCommand::CordonBroker { node, is_cordoned };
    match within(CHANGE_WAIT_DEFAULT, change_catalog(shard, command)).await {
        Some(Ok(CommandOutcome::Refused(error))) => HttpResponse::text(409, format!("{error}\n")),
        Some(Ok(_)) => {
            tracing::info!(
                "node {node} is {}",
                if is_cordoned { "drained" } else { "let in again" }
            );
            HttpResponse {
                status: 200,
                content_type: "application/json",
                body: format!("{{\"node\":{node},\"cordoned\":{is_cordoned}}}\n").into(),
            }
        }
        Some(Err(error)) => HttpResponse::text(503, format!("{}\n", why_not(&error))),
        None => HttpResponse::text(503, "the catalog could not be changed in time\n"),
    }
}

/// What is wrong with this in the catalog as it is.
fn refusal(catalog: &Catalog, node: NodeId, is_cordoned: bool) -> Option<(u16, String)> {
    if catalog.broker(node).is_none() {
        return Some((404, format!("there is no node {node}\n")));
    }
    let is_another_open = catalog.open_brokers().any(|broker| broker.node != node);
    (is_cordoned && !is_another_open).then(|| {
        let why = format!("node {node} is the last one that takes replicas and leads partitions\n");
        (409, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::samples::{broker, catalog_of};

    fn catalog(nodes: u32) -> Catalog {
        catalog_of((1..=nodes).map(|node| broker(node, node.into())))
    }

    #[test]
    fn given_nodes_when_drained_then_the_last_one_that_serves_and_unknown_ones_are_refused() {
        let mut catalog = catalog(2);
        let status = |catalog: &Catalog, node, is_cordoned| {
            refusal(catalog, NodeId(node), is_cordoned).map(|(status, _)| status)
        };
        assert_eq!(status(&catalog, 1, true), None);
        assert_eq!(status(&catalog, 3, true), Some(404));
        assert_eq!(status(&catalog, 3, false), Some(404));
        let cordon = CatalogCommand::CordonBroker { node: NodeId(1), is_cordoned: true };
        catalog.apply(&cordon);
        assert_eq!(status(&catalog, 1, true), None, "once more does no harm");
        assert_eq!(status(&catalog, 2, true), Some(409));
        assert_eq!(status(&catalog, 1, false), None);
    }
}
