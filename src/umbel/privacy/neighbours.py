def neighbourhood(n, corrupt, dropped):
    return n - 1, max(2, (n - 1) * 6 // 10)


def graph(clients, degree, seed):
    return {c: tuple(o for o in clients if o != c) for c in clients}
