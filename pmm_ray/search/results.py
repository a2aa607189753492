def tell_results(sweep, record, handle):
    for t in sorted(record.all,key=lambda t:-(t.score or 0))[:8]: print(t)
