import Synchronization

/// Lets callers through one by one, as many as there are tickets, or all of them once it is open.
final class Gate: Sendable {
  private struct State {
    var tickets = 0
    var isOpen = false
    var waiting: [CheckedContinuation<Void, Never>] = []
  }

  private let state = Mutex(State())

  func pass() async {
    await withCheckedContinuation { continuation in
      let isThrough = state.withLock { state in
        if state.isOpen { return true }
        guard state.tickets > 0 else {
          state.waiting.append(continuation)
          return false
        }
        state.tickets -= 1
        return true
      }
      if isThrough { continuation.resume() }
    }
  }

  func admit(_ count: Int) {
    let admitted = state.withLock { state in
      let admitted = Array(state.waiting.prefix(count))
      state.waiting.removeFirst(admitted.count)
      state.tickets += count - admitted.count
      return admitted
    }
    for one in admitted { one.resume() }
  }

  func open() {
    let waiting = state.withLock { state in
      state.isOpen = true
      defer { state.waiting = [] }
      return state.waiting
    }
    for one in waiting { one.resume() }
  }
}
