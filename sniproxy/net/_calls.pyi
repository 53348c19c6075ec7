from sniproxy.net.calls import Epoll as Epoll
from sniproxy.net.calls import Socket as Socket
from sniproxy.net.calls import accept as accept
from sniproxy.net.calls import connect as connect
from sniproxy.net.calls import send_first as send_first
