//! What administrators see of the groups.

use bytes::Bytes;

use super::coordinator::Coordinator;
use super::group::{Group, GroupState, Member};

/// A group in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedGroup {
    /// Its name.
    pub name: String,
    /// What its members are, empty if it never had any.
    pub protocol_type: String,
    /// Where it is.
    pub state: GroupState,
}

/// A group in detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescribedGroup {
    /// Where it is.
    pub state: GroupState,
    /// What its members are, empty if it never had any.
    pub protocol_type: String,
    /// The protocol in force, empty unless the group is stable.
    pub protocol: String,
    /// Its members.
    pub members: Vec<DescribedMember>,
}

/// A member in detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescribedMember {
    /// Its id.
    pub id: String,
    /// Its instance, if it is static.
    pub instance_id: Option<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// Where it comes from.
    pub client_host: String,
    /// What it said of itself, while the group is stable.
    pub metadata: Bytes,
    /// What it was given, while the group is stable.
    pub assignment: Bytes,
}

impl Coordinator {
    /// All groups, in the order of their names.
    pub fn list(&self) -> impl Iterator<Item = ListedGroup> {
        self.groups.iter().map(|(name, group)| ListedGroup {
            name: name.clone(),
            protocol_type: group.protocol_type.clone().unwrap_or_default(),
            state: group.state,
        })
    }

    /// One group, if there is such a one.
    #[must_use]
    pub fn describe(&self, name: &str) -> Option<DescribedGroup> {
        self.groups.get(name).map(Group::describe)
    }
}

impl Group {
    fn describe(&self) -> DescribedGroup {
        let protocol = self.protocol.as_deref().filter(|_| self.state == GroupState::Stable);
        let describe = |(id, member): (&String, &Member)| DescribedMember {
            id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: member.metadata(protocol),
            assignment: member.assignment.clone(),
        };
        DescribedGroup {
            state: self.state,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: protocol.unwrap_or_default().to_owned(),
            members: self.members.iter().map(describe).collect(),
        }
    }
}
