import DiffusionCore
import Observation

/// The state of one picture for a SwiftUI view. Bind to its properties and call its methods.
///
/// ```swift
/// @State private var generation = Generation(pipeline: pipeline)
/// ```
@MainActor
@Observable
public final class Generation {
  /// The phases of a run.
  public enum State: Sendable, Equatable {
    /// No run yet, or the run was cancelled.
    case idle
    /// `done` of `total` steps are done.
    case running(done: Int, total: Int)
    /// The picture is finished.
    case finished
    /// The run stopped with a snapshot; `resume()` continues it.
    case interrupted(reason: String)
    /// The run failed, with a sentence that says why.
    case failed(String)
  }

  /// The phase of the current run.
  public private(set) var state: State = .idle
  /// The newest clean estimates, highest level first, and finally the result.
  public private(set) var pictures: [Picture] = []
  /// Durations of the steps so far, in seconds.
  public private(set) var stepSeconds: [Double] = []
  /// The thermal state of the device at the last step.
  public private(set) var thermalState: ThermalState = .unknown
  private let pipeline: Pipeline
  private var task: Task<Void, Never>?
  private var snapshot: Snapshot?

  /// - Parameter pipeline: for this object alone.
  public init(pipeline: Pipeline) { self.pipeline = pipeline }

  /// Makes a picture. Cancels a picture that is being made.
  public func start(_ request: PictureRequest, previews: Previews = .all) {
    pictures = []
    stepSeconds = []
    follow(pipeline.generate(request, previews: previews))
  }

  /// Continues after an interruption; does nothing otherwise.
  public func resume(previews: Previews = .all) {
    guard let snapshot else { return }
    follow(pipeline.resume(snapshot, previews: previews))
  }

  /// Ends the run and releases its resources.
  public func cancel() {
    task?.cancel()
    if case .running = state { state = .idle }
  }

  /// Stops the run so that `resume()` can continue it. Call it when the app goes to the background.
  public func interrupt() async { await pipeline.interrupt(reason: "in the background") }

  /// Returns when the last run has ended and released its resources.
  public func wait() async {
    await task?.value
    await pipeline.idle()
  }

  private func follow(_ stream: AsyncThrowingStream<Step, any Error>) {
    task?.cancel()
    snapshot = nil
    state = .running(done: 0, total: 0)
    task = Task { [weak self] in
      do {
        for try await step in stream {
          guard let self, !Task.isCancelled else { return }
          self.show(step)
        }
      } catch MatryoshkaError.interrupted(let snapshot, let reason) {
        guard !Task.isCancelled else { return }
        self?.snapshot = snapshot
        self?.state = .interrupted(reason: reason)
      } catch {
        guard !Task.isCancelled else { return }
        self?.state = .failed((error as? MatryoshkaError)?.errorDescription ?? "\(error)")
      }
    }
  }

  private func show(_ step: Step) {
    pictures = step.finished?.pictures ?? step.previews
    stepSeconds.append(step.seconds)
    thermalState = step.thermalState
    state = step.finished == nil ? .running(done: step.index + 1, total: step.total) : .finished
  }
}
