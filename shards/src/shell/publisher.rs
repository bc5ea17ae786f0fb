//! The way of a catalog change from the group `__meta` on shard 0 to every core.
//!
//! - I1: catalogs are published one at a time and only ever newer ones; changes that come meanwhile are published
//!   together.
//! - I2: first every shard makes the groups that the new catalog places on it and they get leaders; then every core shows the
//!   catalog to its clients; then the groups that it no longer names are deleted. So no client is sent to a partition
//!   that is not there yet. A step begins when all shards have done the one before.
//! - I3: the same way brings a node up: what a shard's log holds beside the catalog (a crash between two steps) is
//!   made or deleted by the first publication.
//! - I4: a catalog counts as published only when every shard has done all steps. Where one could not be reached, all
//!   steps are done again, with a newer catalog if there is one by then: each may be repeated.
//! - I5: replicas are made and deleted only by a catalog that names this node's own disk, and each under its own id: where a
//!   shard is to have another replica of a group than it has, the old one is gone before the new one is made.

use std::collections::BTreeSet;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use chronik_engine::ids::{GroupId, ShardId};
use chronik_ring::sleep;
use futures_util::future::{Either, join_all, select};

use super::fatal::{Reason, fatal};
use super::mesh::MeshRefused;
use super::shard::Shard;
use crate::catalog::Catalog;
use crate::core::CoreError;

/// How long a publication waits for leaders of groups that have replicas on other nodes.
const LEADER_PATIENCE: Duration = Duration::from_secs(1);

/// Between two tries when a shard could not be reached.
const RETRY: Duration = Duration::from_millis(100);

/// Publishes catalogs until the shard stops. Runs on shard 0.
pub async fn publish_loop(shard: Rc<Shard>) {
    let mut is_refused = false;
    loop {
        shard.catalog_changed.notified().await;
        if shard.stopping.get() {
            return;
        }
        let generation = shard.catalog_generation.get();
        let newest = shard.catalog_newest.borrow_mut().take();
        let Some(catalog) = newest else { continue };
        match publish(&shard, &catalog).await {
            Ok(()) => {
                is_refused = false;
                shard.catalog_published(generation);
            }
            Err(why) => {
                if let Unpublished::Mesh(refused) = &why
                    && !is_refused
                {
                    tracing::warn!("a catalog change did not reach every shard yet: {refused}");
                    is_refused = true;
                }
                shard.catalog_newest.borrow_mut().get_or_insert(catalog);
                sleep(RETRY).await;
                shard.catalog_changed.notify();
            }
        }
    }
}

/// The three steps (I2).
async fn publish(shard: &Rc<Shard>, catalog: &Arc<Catalog>) -> Result<(), Unpublished> {
    if catalog.is_retired(shard.node.incarnation) {
        fatal(&Reason::Retired);
    }
    let made = on_all(shard, catalog, create_groups).await?;
    on_all(shard, catalog, show).await?;
    on_all(shard, catalog, delete_groups).await?;
    match made.into_iter().all(|all| all) {
        true => Ok(()),
        false => Err(Unpublished::OldReplica),
    }
}

/// Why a catalog is to be published again.
#[derive(Debug, thiserror::Error)]
enum Unpublished {
    /// A shard could not be reached.
    #[error(transparent)]
    Mesh(#[from] MeshRefused),
    /// The replica that a shard had of a group is not gone yet.
    #[error("a shard has to delete a replica before it can make another one of the same partition")]
    OldReplica,
}

/// One step on every shard; returns when all that could be reached have done it.
async fn on_all<T, F, Fut>(
    shard: &Rc<Shard>,
    catalog: &Arc<Catalog>,
    step: F,
) -> Result<Vec<T>, MeshRefused>
where
    T: Send + 'static,
    F: Fn(Rc<Shard>, Arc<Catalog>) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = T> + 'static,
{
    let done = join_all((0..shard.node.shards).map(|to| {
        let catalog = Arc::clone(catalog);
        shard.on(ShardId(to), move |there| step(there, catalog))
    }));
    done.await.into_iter().collect()
}

/// Makes the groups that the catalog places on this shard and waits until they are led. A group of several nodes is not
/// waited for long: whether it can have a leader is not in this node's hands; and a replica that comes to a group which is
/// there is not waited for at all, nor a group that clients are shown already: it would hold up every change while it has no
/// leader. False if one could not be made, because this shard has another replica of the group.
async fn create_groups(shard: Rc<Shard>, catalog: Arc<Catalog>) -> bool {
    shard.learn_seats(&catalog);
    if !shard.is_in_catalog(&catalog) {
        return true; // what is placed here is placed on another disk
    }
    // At a start nothing is shown yet, so all that was there before is waited for once.
    let shown = shard.catalog();
    let mut unready: Vec<GroupId> = Vec::new();
    let mut are_made = true;
    shard.change_core(|core| {
        for (group, meta) in catalog.placed_on(shard.node.config.node_id, shard.id) {
            let is_new = meta.learners.is_empty() && !shown.has_given_out(group);
            match core.replica(group) {
                Some(replica) if replica == meta.replica => {}
                Some(_) => {
                    // The catalog has deleted it, and placed another one here since.
                    core.delete_group(group);
                    are_made = false;
                    continue;
                }
                None => match core.try_create_group(group, meta) {
                    Ok(()) => {}
                    // The deletion of another replica is on its way to the disk.
                    Err(CoreError::DuplicateGroup { .. }) => {
                        are_made = false;
                        continue;
                    }
                    Err(error) => unreachable!("the catalog's placements are coherent: {error}"),
                },
            }
            if is_new && core.partition(group).is_some_and(|view| !view.is_settled) {
                unready.push(group);
            }
        }
    });
    let relaxed = catalog.relaxed_groups().collect();
    shard.change_core(|core| core.set_relaxed(&relaxed));
    let lost = catalog.lost_beside(shard.node.config.node_id, shard.id);
    for group in shard.change_core(|core| core.set_lost(&lost)) {
        let partition = shard.name_in(&catalog, group);
        tracing::warn!(partition, "its other replica is lost, this one goes on alone");
    }
    if !unready.is_empty() {
        let led = std::pin::pin!(shard.all_led(unready));
        let patience = match shard.links() {
            Some(_) => Either::Left(sleep(LEADER_PATIENCE)),
            None => Either::Right(std::future::pending()),
        };
        // An error is a shard that ends.
        _ = select(led, std::pin::pin!(patience)).await;
    }
    are_made
}

/// Shows the catalog to the clients of this core.
async fn show(shard: Rc<Shard>, catalog: Arc<Catalog>) {
    shard.publish_catalog(catalog);
}

/// Deletes the groups of this shard that the catalog knew and does not name any more. A group whose replica here is
/// another one than is named is deleted where that is to be made.
async fn delete_groups(shard: Rc<Shard>, catalog: Arc<Catalog>) {
    if !shard.is_in_catalog(&catalog) {
        return;
    }
    shard.change_core(|core| {
        let named: BTreeSet<GroupId> = catalog
            .placed_on(shard.node.config.node_id, shard.id)
            .map(|(group, _)| group)
            .collect();
        let gone: Vec<GroupId> = core
            .group_ids()
            .filter(|group| catalog.has_given_out(*group) && *group != GroupId::META)
            .filter(|group| !named.contains(group))
            .collect();
        for group in gone {
            core.delete_group(group);
        }
    });
    let is_here = |group| shard.with_core(|core| core.partition(group).is_some());
    shard.complaints.forget(is_here);
}
