# From the metrics of a node to one line for each pair of workloads that met there.
function label(name,    at, rest) {
    at = index($0, name "=\"")
    if (at == 0) return "?"
    rest = substr($0, at + length(name) + 2)
    return substr(rest, 1, index(rest, "\"") - 1)
}
/^istio_tcp_.*reporter="destination"/ {
    pair = sprintf("    %-9s %-9s", label("source_workload"), label("destination_workload"))
    pairs[pair]
    metric = substr($1, 1, index($1, "{") - 1)
    sum[pair, metric] += $NF
}
END {
    for (pair in pairs)
        printf "%s %7d %7d %9d %9d\n", pair, \
            sum[pair, "istio_tcp_connections_opened_total"], \
            sum[pair, "istio_tcp_connections_failed_total"], \
            sum[pair, "istio_tcp_received_bytes_total"], \
            sum[pair, "istio_tcp_sent_bytes_total"]
}
