//! What lies where in the mounted directory.
//!
//! ```text
//! changelog-lustre-MDT0000           the device
//! lustre-MDT0000/hsm/actions         the list of HSM actions, if there are any
//! ```
#![forbid(unsafe_code)]

use lcap_ffi::fuse::ROOT_NODE;

/// A file or directory; of an MDT, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Root,
    Device(usize),
    Mdt(usize),
    Hsm(usize),
    Actions(usize),
}

impl Node {
    pub(super) fn is_directory(self) -> bool {
        matches!(self, Self::Root | Self::Mdt(_) | Self::Hsm(_))
    }
}

/// The tree of a simulation with these MDTs.
#[derive(Debug)]
pub(super) struct Tree {
    mdts: Vec<String>,
    has_lists: bool,
}

impl Tree {
    pub(super) fn new(mdts: Vec<String>, has_lists: bool) -> Self {
        Self { mdts, has_lists }
    }

    /// The kernel's number of a node: the root, then all devices, all directories, and so on.
    pub(super) fn id(&self, node: Node) -> u64 {
        let (level, mdt) = match node {
            Node::Root => return ROOT_NODE,
            Node::Device(mdt) => (0, mdt),
            Node::Mdt(mdt) => (1, mdt),
            Node::Hsm(mdt) => (2, mdt),
            Node::Actions(mdt) => (3, mdt),
        };
        ROOT_NODE + 1 + (level * self.mdts.len() + mdt) as u64
    }

    /// The node of a number.
    pub(super) fn node(&self, id: u64) -> Option<Node> {
        if id == ROOT_NODE {
            return Some(Node::Root);
        }
        let at = usize::try_from(id.checked_sub(ROOT_NODE + 1)?).ok()?;
        let mdt = at.checked_rem(self.mdts.len())?;
        match at / self.mdts.len() {
            0 => Some(Node::Device(mdt)),
            1 if self.has_lists => Some(Node::Mdt(mdt)),
            2 if self.has_lists => Some(Node::Hsm(mdt)),
            3 if self.has_lists => Some(Node::Actions(mdt)),
            _ => None,
        }
    }

    /// What a directory holds.
    pub(super) fn children(&self, of: Node) -> Vec<(String, Node)> {
        let mdts = || self.mdts.iter().enumerate();
        match of {
            Node::Root => {
                let devices =
                    mdts().map(|(at, mdt)| (format!("changelog-{mdt}"), Node::Device(at)));
                let lists = mdts().filter(|_| self.has_lists);
                devices.chain(lists.map(|(at, mdt)| (mdt.clone(), Node::Mdt(at)))).collect()
            }
            Node::Mdt(mdt) => vec![("hsm".to_owned(), Node::Hsm(mdt))],
            Node::Hsm(mdt) => vec![("actions".to_owned(), Node::Actions(mdt))],
            Node::Device(_) | Node::Actions(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_found_by_its_number() {
        let tree = Tree::new(vec!["a-MDT0000".into(), "a-MDT0001".into()], true);
        let (mut open, mut n) = (vec![Node::Root], 0);
        while let Some(node) = open.pop() {
            assert_eq!(tree.node(tree.id(node)), Some(node));
            assert_eq!(node.is_directory(), !tree.children(node).is_empty());
            open.extend(tree.children(node).into_iter().map(|(_, child)| child));
            n += 1;
        }
        assert_eq!(n, 9);
        assert_eq!(tree.node(0), None);
        assert_eq!(tree.node(ROOT_NODE + 9), None);
        let tree = Tree::new(vec!["a-MDT0000".into()], false);
        assert_eq!(tree.children(Node::Root).len(), 1);
        assert_eq!(tree.node(ROOT_NODE + 2), None);
    }
}
