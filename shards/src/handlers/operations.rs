//! Which operations a client is authorized to, for those that ask. Without an authorizer everybody may do everything, so
//! that a resource is answered all operations that it supports, as Kafka does.

/// The answer where nobody asked.
pub const NOT_ASKED_FOR: i32 = i32::MIN;

/// An operation on a resource, by Kafka's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum AclOperation {
    Read = 3,
    Write = 4,
    Create = 5,
    Delete = 6,
    Alter = 7,
    Describe = 8,
    ClusterAction = 9,
    DescribeConfigs = 10,
    AlterConfigs = 11,
    IdempotentWrite = 12,
}

use AclOperation::{
    Alter, AlterConfigs, ClusterAction, Create, Delete, Describe, DescribeConfigs, IdempotentWrite,
    Read, Write,
};

const OF_TOPIC: i32 =
    bits(&[Read, Write, Create, Delete, Alter, Describe, DescribeConfigs, AlterConfigs]);
const OF_GROUP: i32 = bits(&[Read, Delete, Describe, DescribeConfigs, AlterConfigs]);
const OF_CLUSTER: i32 =
    bits(&[Create, Alter, Describe, ClusterAction, DescribeConfigs, AlterConfigs, IdempotentWrite]);

/// One bit for each operation, in the place of its number.
const fn bits(operations: &[AclOperation]) -> i32 {
    let mut bits = 0;
    let mut rest = operations;
    while let [first, others @ ..] = rest {
        bits |= 1 << *first as i32;
        rest = others;
    }
    bits
}

/// What has operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// A topic.
    Topic,
    /// A consumer group.
    Group,
    /// The cluster.
    Cluster,
}

/// The operations of a resource as a bit set, if they are `asked` for.
#[must_use]
pub fn authorized(resource: Resource, asked: bool) -> i32 {
    match resource {
        _ if !asked => NOT_ASKED_FOR,
        Resource::Topic => OF_TOPIC,
        Resource::Group => OF_GROUP,
        Resource::Cluster => OF_CLUSTER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_each_resource_when_asked_then_the_bits_are_kafkas() {
        assert_eq!(authorized(Resource::Topic, true), 0b1101_1111_1000);
        assert_eq!(authorized(Resource::Group, true), 0b1101_0100_1000);
        assert_eq!(authorized(Resource::Cluster, true), 0b1_1111_1010_0000);
        assert_eq!(authorized(Resource::Topic, false), NOT_ASKED_FOR);
    }
}
