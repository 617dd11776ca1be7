<?php
// A plain Mongrel2 handler: php handler.php SEND_SPEC RECV_SPEC; answers with what it was asked.
$context = new ZMQContext();
$pull = new ZMQSocket($context, ZMQ::SOCKET_PULL);
$pull->connect($argv[1]);
$pub = new ZMQSocket($context, ZMQ::SOCKET_PUB);
$pub->setSockOpt(ZMQ::SOCKOPT_LINGER, 0);
$pub->connect($argv[2]);

function netstring(string $text): array {
    [$size, $rest] = explode(':', $text, 2);
    return [substr($rest, 0, (int) $size), substr($rest, (int) $size + 1)];
}

while (true) {
    [$ident, $id, $path, $rest] = explode(' ', $pull->recv(), 4);
    [$json, $rest] = netstring($rest);
    [$body] = netstring($rest);
    $headers = json_decode($json, true, 512, JSON_THROW_ON_ERROR);
    if ($path === '@*') {
        continue;
    }
    $told = json_encode([
        'method' => $headers['METHOD'], 'path' => $path, 'query' => $headers['QUERY'] ?? null,
        'x' => $headers['x-test'] ?? null, 'body' => $body, 'host' => $headers['host'] ?? null,
    ]);
    $reply = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
        . strlen($told) . "\r\n\r\n" . $told;
    $pub->send($ident . ' ' . strlen($id) . ':' . $id . ', ' . $reply);
}
