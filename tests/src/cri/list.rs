//! What a runtime has, by filters.

use super::Cri;
use nacre_protocol::cri::{
    Container, ContainerFilter, ListContainersRequest, ListContainersResponse, ListPodSandboxRequest,
    ListPodSandboxResponse, PodSandbox, PodSandboxFilter, StateValue,
};

impl Cri {
    /// Pods that a filter lets through.
    ///
    /// # Panics
    /// Where the runtime refuses.
    #[track_caller]
    pub fn pods(&self, change: impl FnOnce(&mut PodSandboxFilter)) -> Vec<PodSandbox> {
        let mut request = ListPodSandboxRequest::new();
        change(request.filter.mut_or_insert_default());
        let reply: ListPodSandboxResponse = self.must("ListPodSandbox", &request);
        reply.items
    }

    /// Containers that a filter lets through.
    ///
    /// # Panics
    /// Where the runtime refuses.
    #[track_caller]
    pub fn containers(&self, change: impl FnOnce(&mut ContainerFilter)) -> Vec<Container> {
        let mut request = ListContainersRequest::new();
        change(request.filter.mut_or_insert_default());
        let reply: ListContainersResponse = self.must("ListContainers", &request);
        reply.containers
    }
}

/// A state as filters have it.
pub fn state(state: i32) -> StateValue {
    StateValue { state, ..Default::default() }
}
