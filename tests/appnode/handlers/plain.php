<?php
// A handler in another language: php-zmq and json_decode, as PHP's Mongrel2 libraries do it.

$context = new ZMQContext();
$pull = $context->getSocket(ZMQ::SOCKET_PULL);
$pull->connect($argv[1]);
$pub = $context->getSocket(ZMQ::SOCKET_PUB);
$pub->connect($argv[2]);

function netstring(string $data): array
{
    [$size, $rest] = explode(':', $data, 2);
    return [substr($rest, 0, (int) $size), substr($rest, (int) $size + 1)];
}

function answer(string $method, string $path, array $headers, string $body): array
{
    switch ($path) {
        case '/hello':
            return ['200 OK', "Hello, world\n"];
        case '/echo':
            return ['200 OK', $body];
        case '/say':
            return ['200 OK', implode('|', [$method, $headers['QUERY'] ?? '', $headers['x-test'] ?? '', $path])];
    }
    return ['404 Not Found', ''];
}

while (true) {
    [$ident, $number, $path, $rest] = explode(' ', $pull->recv(), 4);
    [$json, $rest] = netstring($rest);
    $headers = json_decode($json, true, 512, JSON_THROW_ON_ERROR);
    [$body] = netstring($rest);
    if ($headers['METHOD'] === 'JSON') {
        continue;
    }
    [$status, $text] = answer($headers['METHOD'], $headers['PATH'], $headers, $body);
    $reply = "HTTP/1.1 $status\r\nContent-Length: " . strlen($text) . "\r\n\r\n" . $text;
    $pub->send($ident . ' ' . strlen($number) . ':' . $number . ', ' . $reply);
}
