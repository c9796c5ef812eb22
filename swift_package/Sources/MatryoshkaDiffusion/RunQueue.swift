import DiffusionCore
import Synchronization

/// The runs of a pipeline that have not ended, in the order in which they were asked for. The first
/// one works.
///
/// A run is listed from the call that asks for it. So an interruption reaches every run that was asked
/// for before it, whether that run works, waits, or has not been scheduled yet.
final class RunQueue: Sendable {
  private struct State {
    var runs: [Run] = []
    var waiting: [CheckedContinuation<Void, Never>] = []
  }

  private let state = Mutex(State())

  func add(_ run: Run) { state.withLock { $0.runs.append(run) } }

  func remove(_ run: Run) {
    let waiting = state.withLock { state in
      state.runs.removeAll { $0 === run }
      defer { state.waiting = [] }
      return state.waiting
    }
    for one in waiting { one.resume() }
  }

  func interrupt(_ reason: String) {
    for run in state.withLock({ $0.runs }) { run.interrupt(reason) }
  }

  /// Returns when it is this run's turn. Throws ``MatryoshkaError/busy`` if a picture is being made
  /// that nothing has ended.
  func turn(of run: Run) async throws {
    try refuseIfBusy(run)
    await wait { $0.first === run }
  }

  /// Returns when it is this run's turn, however long that takes.
  func turnAfterAll(of run: Run) async { await wait { $0.first === run } }

  /// Returns when there is no run.
  func idle() async { await wait(until: \.isEmpty) }

  private func refuseIfBusy(_ run: Run) throws {
    let earlier = state.withLock { $0.runs.prefix { $0 !== run } }
    if earlier.contains(where: { $0.kind == .picture && !$0.isEnding }) { throw MatryoshkaError.busy }
  }

  private func wait(until isReached: ([Run]) -> Bool) async {
    while !state.withLock({ isReached($0.runs) }) {
      await withCheckedContinuation { continuation in
        // Looked at again together with the listing, because a run may have ended meanwhile.
        let isOver = state.withLock { state in
          if isReached(state.runs) { return true }
          state.waiting.append(continuation)
          return false
        }
        if isOver { continuation.resume() }
      }
    }
  }
}
