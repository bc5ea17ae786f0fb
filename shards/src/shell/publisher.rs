//! The way of a catalog change from the group `__meta` on shard 0 to every core.
//!
//! - I1: catalogs are published one at a time and only ever newer ones; changes that come meanwhile are published
//!   together.
//! - I2: first every shard makes the groups that the new catalog places on it and leads them; then every core shows the
//!   catalog to its clients; then the groups that it no longer names are deleted. So no client is sent to a partition
//!   that is not there yet.
//! - I3: the same way brings a node up: what a shard's log holds beside the catalog (a crash between two steps) is
//!   made or deleted by the first publication.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use chronik_engine::ids::{GroupId, ShardId};
use futures_util::future::join_all;

use super::shard::Shard;
use crate::catalog::Catalog;

/// Publishes catalogs until the shard stops. Runs on shard 0.
pub async fn publish_loop(shard: Rc<Shard>) {
    loop {
        shard.catalog_changed.notified().await;
        if shard.stopping.get() {
            return;
        }
        let generation = shard.catalog_generation.get();
        let newest = shard.catalog_newest.borrow_mut().take();
        if let Some(catalog) = newest {
            publish(&shard, catalog).await;
            shard.catalog_published(generation);
        }
    }
}

async fn publish(shard: &Rc<Shard>, catalog: Arc<Catalog>) {
    let all = || (0..shard.node.shards).map(ShardId);
    let placed = join_all(all().map(|to| {
        let catalog = Arc::clone(&catalog);
        shard.on(to, move |there| async move { create_groups(&there, &catalog).await })
    }));
    log_refused(placed.await);
    let shown = join_all(all().map(|to| {
        let catalog = Arc::clone(&catalog);
        shard.on(to, move |there| {
            there.publish_catalog(Arc::clone(&catalog));
            delete_groups(&there, &catalog);
            async {}
        })
    }));
    log_refused(shown.await);
}

fn log_refused(results: Vec<Result<(), super::mesh::MeshRefused>>) {
    for refused in results.into_iter().filter_map(Result::err) {
        tracing::error!("a catalog change did not reach every shard: {refused}");
    }
}

/// Makes the groups that the catalog places on this shard and waits until they lead.
async fn create_groups(shard: &Rc<Shard>, catalog: &Catalog) {
    let placed: Vec<GroupId> = shard.change_core(|core| {
        catalog
            .placed_on(shard.node.config.node_id, shard.id)
            .map(|(group, meta)| {
                if core.partition(group).is_none() {
                    core.create_group(group, meta);
                }
                group
            })
            .collect()
    });
    _ = shard.leads_all(placed).await;
}

/// Deletes the groups of this shard that the catalog does not name.
fn delete_groups(shard: &Rc<Shard>, catalog: &Catalog) {
    shard.change_core(|core| {
        let named: BTreeSet<GroupId> = catalog
            .placed_on(shard.node.config.node_id, shard.id)
            .map(|(group, _)| group)
            .collect();
        let gone: Vec<GroupId> = core
            .group_ids()
            .filter(|group| *group != GroupId::META && !named.contains(group))
            .collect();
        for group in gone {
            core.delete_group(group);
        }
    });
}
