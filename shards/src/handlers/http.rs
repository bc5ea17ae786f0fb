//! What the broker says over HTTP: metrics, health, readiness, latencies. The same on the admin port and, as far as it
//! is for everybody, on the Kafka port.

use std::rc::Rc;

use chronik_engine::ids::ShardId;
use chronik_net::{HttpMethod, HttpRequest, HttpResponse, ListenerKind};
use futures_util::future::join_all;

use super::nodes;
use crate::metrics::{self, ShardSnapshot};
use crate::shell::shard::Shard;

/// Serves one HTTP request.
pub async fn http(shard: Rc<Shard>, listener: ListenerKind, request: HttpRequest) -> HttpResponse {
    let admin = listener == ListenerKind::Http;
    if request.method == HttpMethod::Post {
        if admin {
            return nodes::post(&shard, &request).await;
        }
        return HttpResponse::text(405, "only GET and HEAD are served here\n");
    }
    match request.path.as_str() {
        "/health" => HttpResponse::text(200, "ok\n"),
        "/metrics" => {
            let shards = snapshots(&shard).await;
            HttpResponse {
                status: 200,
                content_type: "text/plain; version=0.0.4; charset=utf-8",
                body: metrics::render_prometheus(&shards, shard.node.config.node_id).into(),
            }
        }
        "/ready" if admin => ready(&shard).await,
        "/cluster/status" if admin => {
            let status = shard.cluster_status().await;
            if request.query.as_deref() != Some("format=json") {
                return HttpResponse::text(200, status.to_text());
            }
            match serde_json::to_vec(&status) {
                Ok(json) => HttpResponse {
                    status: 200,
                    content_type: "application/json",
                    body: json.into(),
                },
                Err(error) => HttpResponse::text(500, format!("{error}\n")),
            }
        }
        "/debug/latency" if admin => {
            let shards = snapshots(&shard).await;
            if request.query.as_deref() == Some("format=json") {
                HttpResponse {
                    status: 200,
                    content_type: "application/json",
                    body: metrics::render_latency_json(&shards).into(),
                }
            } else {
                HttpResponse::text(200, metrics::render_latency_text(&shards))
            }
        }
        "/debug/latency.hgrm" if admin => {
            let stage = request.query.as_deref().and_then(|query| query.strip_prefix("stage="));
            let shards = snapshots(&shard).await;
            match stage.and_then(|stage| metrics::render_hgrm(&shards, stage)) {
                Some(text) => HttpResponse::text(200, text),
                None => HttpResponse::text(400, metrics::hgrm_usage()),
            }
        }
        _ => HttpResponse::text(
            404,
            "not found; there are /metrics, /health, /ready, /cluster/status, /debug/latency\n",
        ),
    }
}

/// Whether all cores are ready; if not, what each of them waits for, a line for each reason.
async fn ready(shard: &Rc<Shard>) -> HttpResponse {
    let all = (0..shard.node.shards).map(ShardId);
    let answers = join_all(all.clone().map(|id| {
        shard.on(id, |there| {
            let unready = there.unready();
            async move { unready }
        })
    }))
    .await;
    let mut reasons = String::new();
    for (id, answer) in all.zip(answers) {
        for why in answer.unwrap_or_else(|_| vec!["does not answer"]) {
            reasons.push_str(&format!("shard {id}: {why}\n"));
        }
    }
    if reasons.is_empty() {
        HttpResponse::text(200, "ready\n")
    } else {
        HttpResponse::text(503, format!("not ready\n{reasons}"))
    }
}

/// The figures of every shard, as of now.
async fn snapshots(shard: &Rc<Shard>) -> Vec<ShardSnapshot> {
    let all = (0..shard.node.shards).map(ShardId);
    let asked = all.map(|id| {
        shard.on(id, |there| {
            let snapshot = there.snapshot();
            async move { snapshot }
        })
    });
    join_all(asked).await.into_iter().filter_map(Result::ok).collect()
}
