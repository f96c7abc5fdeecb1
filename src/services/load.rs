//! One figure for how busy a service, or this node, is.

use wiremesh_certs::Load;

/// What the GPUs say counts less than requests: their utilisation is near 100 % with a single job.
const GPU_SHARE: f64 = 0.3;
/// Breaks ties between nodes that are otherwise equally idle.
const CPU_SHARE: f64 = 0.05;

/// What goes into the load figure; each from 0 to 1, `requests` above 1 if some wait.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Busy {
    /// Requests in flight and waiting, over capacity: the busiest service.
    pub requests: f64,
    /// How full the memory is that requests need while they run: the fullest service.
    pub kv_usage: f64,
    /// Mean utilisation of the GPUs, whoever uses them; 0 without.
    pub gpu: f64,
    /// Utilisation of the CPUs.
    pub cpu: f64,
}

/// The load the node publishes.
pub fn load_of(busy: Busy) -> Load {
    Load::from_share(busy.requests.max(busy.kv_usage).max(GPU_SHARE * busy.gpu + CPU_SHARE * busy.cpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_over_capacity_dominate() {
        assert_eq!(load_of(Busy { requests: 0.5, gpu: 1.0, cpu: 1.0, ..Busy::default() }).percent(), 50);
        assert_eq!(load_of(Busy { requests: 3.0, ..Busy::default() }).percent(), 100);
    }

    #[test]
    fn a_full_kv_cache_leaves_no_room_whatever_the_requests() {
        assert_eq!(load_of(Busy { requests: 0.1, kv_usage: 0.95, ..Busy::default() }).percent(), 95);
    }

    #[test]
    fn a_gpu_busy_with_other_work_shows() {
        assert_eq!(load_of(Busy { gpu: 1.0, ..Busy::default() }).percent(), 30);
    }

    #[test]
    fn an_idle_machine_has_no_load() {
        assert_eq!(load_of(Busy::default()).percent(), 0);
    }
}
