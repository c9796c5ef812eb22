import DiffusionCore
import Observation

/// The state of one picture for a SwiftUI view: bind to its properties, call its methods.
///
/// ```swift
/// @State private var generation = Generation(pipeline: pipeline)
/// ```
@MainActor
@Observable
public final class Generation {
  /// What is happening.
  public enum State: Sendable, Equatable {
    /// Nothing yet, or cancelled.
    case idle
    /// Steps done, of so many.
    case running(done: Int, total: Int)
    /// There is a picture.
    case finished
    /// Stopped with a snapshot; `resume()` goes on.
    case interrupted(reason: String)
    /// It failed; one sentence.
    case failed(String)
  }

  /// What is happening.
  public private(set) var state: State = .idle
  /// The newest clean estimates, highest level first; the result once finished.
  public private(set) var pictures: [Picture] = []
  /// Seconds of every step so far.
  public private(set) var stepSeconds: [Double] = []
  /// How hot the device was at the last step.
  public private(set) var thermalState: ThermalState = .unknown
  private let pipeline: Pipeline
  private var task: Task<Void, Never>?
  private var snapshot: Snapshot?

  /// - Parameter pipeline: used by this object alone.
  public init(pipeline: Pipeline) { self.pipeline = pipeline }

  /// Makes a picture; one that is being made is given up.
  public func start(_ request: PictureRequest, previews: Previews = .all) {
    pictures = []
    stepSeconds = []
    follow(pipeline.generate(request, previews: previews))
  }

  /// Goes on after an interruption; does nothing otherwise.
  public func resume(previews: Previews = .all) {
    guard let snapshot else { return }
    follow(pipeline.resume(snapshot, previews: previews))
  }

  /// Ends the run; what it held is released.
  public func cancel() {
    task?.cancel()
    if case .running = state { state = .idle }
  }

  /// Stops the run so that `resume()` can go on: for when the app goes to the background.
  public func interrupt() async { await pipeline.interrupt(reason: "in the background") }

  /// Returns when the run that was started last has ended and released what it held.
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
