"""A gRPC server without generated code; messages are plain bytes."""
import time
from concurrent import futures

import grpc


class Calls(grpc.GenericRpcHandler):
    """The methods of /demo.Echo."""

    def service(self, details):
        method = details.method.rsplit("/", 1)[1]
        if method == "Unary":
            return grpc.unary_unary_rpc_method_handler(lambda message, context: b"echo:" + message)
        if method == "Fail":
            return grpc.unary_unary_rpc_method_handler(lambda message, context: context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today"))
        if method == "Sleep":
            return grpc.unary_unary_rpc_method_handler(lambda message, context: time.sleep(30) or b"late")
        if method == "Count":
            return grpc.unary_stream_rpc_method_handler(lambda message, context: (b"%d" % n for n in range(int(message))))
        if method == "Chat":
            return grpc.stream_stream_rpc_method_handler(lambda messages, context: (b"heard:" + message for message in messages))
        return None


def serve(port=0):
    """Starts a server, by default on a free port; returns it and its URL as an upstream."""
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((Calls(),))
    port = server.add_insecure_port("127.0.0.1:%d" % port)
    server.start()
    return server, "h2c://127.0.0.1:%d" % port
