"""A server's metrics for Prometheus: no names of tasks, of which there may be millions, and no text."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            return Counter(f"colora_{name}", text, registry=self.registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"colora_{name}_seconds", text, buckets=SECONDS, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"colora_{name}", text, registry=self.registry)

        self.requests = Counter(
            "colora_http_requests", "Answers by path and status", ("path", "status"), registry=self.registry
        )
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts that were read")
        self.output_tokens = counter("output_tokens", "Tokens that were generated")
        self.refused = counter("queue_refusals", "Requests refused because the queue was full")
        self.cancelled = counter("cancelled_requests", "Requests whose client hung up")
        self.failures = counter("step_failures", "Steps of the model that failed")
        self.core_hits = counter("core_hits", "Requests whose core was on the device")
        self.core_misses = counter("core_misses", "Requests whose core had to be put on the device")
        self.core_seconds = seconds("core_load", "Putting a core on the device")
        self.step_seconds = seconds("step", "One step of all running rows")
        self.prefill_seconds = seconds("prefill", "Reading the prompts of rows that join")
        self.first_token_seconds = seconds("first_token", "From a request's arrival to its first token")
        self.request_seconds = seconds("request", "From a request's arrival to its last token")
        self.waiting = gauge("waiting_requests", "Requests in the queue")
        self.running = gauge("running_requests", "Rows in the batch")
        self.resident = gauge("resident_cores", "Cores on the device")
        self.tasks = gauge("tasks", "Tasks that can be asked for")

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
